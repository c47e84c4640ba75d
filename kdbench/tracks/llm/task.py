"""``LLMTask``: what a method of the track ``llm`` receives."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kdbench.errors import ArtifactError, JobError
from kdbench.losses.tokens import IGNORE
from kdbench.task import Scores, Task, seed_of
from kdbench.track import Track
from kdbench.tracks.llm import TRACK, gap, scoring
from kdbench.tracks.llm.batches import Loader, TokenLogits
from kdbench.tracks.llm.data.cpython import Document
from kdbench.tracks.llm.data.encoding import Sequences, TextBatch
from kdbench.tracks.llm.data.instruct import Item
from kdbench.tracks.llm.data.prepared import Prepared
from kdbench.tracks.llm.generation import Prompts, as_batch, generate
from kdbench.tracks.llm.kinds.base import Kind, Split
from kdbench.tracks.llm.networks import models, teachers
from kdbench.tracks.llm.networks.tokenizers import pad_id
from kdbench.tracks.llm.spec import OUTPUT_SPLITS, Hub, LLMSpec, Net, SmolLM2


class LLMTask(Task):
    """One task of the track: a teacher, a student and data that share a tokenizer."""

    spec: LLMSpec
    home: ClassVar[Track] = TRACK

    def __init__(self, spec: LLMSpec, **rest: Any) -> None:
        super().__init__(spec, **rest)
        # not on the model: a checkpoint could not tell whether a tokenizer that hangs there changes
        self._adopted: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()

    # --- data -----------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of teacher, student and data, a ``PreTrainedTokenizerFast``."""
        return self._data.tokenizer

    @cached_property
    def _data(self) -> Prepared:
        tokenizer = None
        if isinstance(self.spec.teacher, Hub):
            from kdbench.tracks.llm.networks.hf import load_tokenizer

            tokenizer = load_tokenizer(self.spec.teacher)
        elif isinstance(self.spec.teacher, SmolLM2):
            from kdbench.tracks.llm.networks.smollm import load_tokenizer as load_smollm_tokenizer

            tokenizer = load_smollm_tokenizer(self.cache)
        return Prepared(self.spec, self.cache, tokenizer)

    @property
    def kind(self) -> Kind:
        """What the track does with data of this kind."""
        return self._data.kind

    @property
    def classifies(self) -> bool:
        """Whether models are classifiers (batches carry one class per row) instead of language models."""
        return self.kind.classifies

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for language models."""
        return len(self.kind.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.kind.classes

    def split(self, name: str) -> Split:
        """``train`` or ``val``: tokens and rows. Other splits raise ``TestDataError`` inside ``train``.

        Tagging tasks open ``train`` alone, as the tags of their validation data are of the unlabelled language.
        """
        if name not in self.kind.open:
            self.require_evaluation()
        return self._data.split(name)

    def train_loader(self, batch_size: int | None = None, *, rows: Tensor | None = None) -> Loader:
        """Batches of the training data, or of chosen ``rows`` of it (``index`` then counts in that choice)."""
        sequences = self.split("train").sequences
        if rows is not None:
            sequences = sequences.rows(rows)
        return self.loader(sequences, batch_size, split="train" if rows is None else "")

    def student_loader(self) -> Loader:
        """The training data as the student reads them, under its own tokenizer where it has one."""
        return self.loader(self.student_sequences(), split="train")

    def loader(self, sequences: Sequences, batch_size: int | None = None, *, split: str = "") -> Loader:
        """Batches of any sequences, in the order of the stream ``data``. ``split`` names what ``index`` counts in."""
        size = self.spec.recipe.batch_size if batch_size is None else batch_size
        return Loader(sequences, size, split, self.generator("data"), self.device)

    def train_items(self) -> list[Item]:
        """The training items of an instruction task."""
        return self._rows_of(Item, "items")

    def train_texts(self) -> list[str]:
        """The training data as text: of instructions prompt and response, of text the chunks."""
        return [row.text for row in self.split("train").rows]

    def corpus(self, split: str = "train") -> list[Document]:
        """Documents of a text task before chunking, with their domains."""
        if split not in ("train", "val"):
            self.require_evaluation()
        return self.kind.documents(split)

    def _rows_of(self, kind: type, what: str) -> list[Any]:
        split = self.split("train")
        if split.kind is not kind:
            raise JobError(f"task {self.spec.name} has no {what}")
        return split.rows

    @cached_property
    def student_tokenizer(self) -> Any:
        """What the student reads: its own tokenizer where the task says ``own_tokenizer``, else the task's."""
        if isinstance(self.spec.student, Hub) and self.spec.student.own_tokenizer:
            from kdbench.tracks.llm.networks.hf import load_tokenizer

            return load_tokenizer(self.spec.student)
        return self.tokenizer

    def student_sequences(self, split: str = "train") -> Sequences:
        """The rows of a split as the student reads them."""
        return self.kind.same_tokens(self, self.split(split), self.student_tokenizer)

    def local_tokenizer(self, name: str) -> Any:
        """Another tokenizer of the same training data: ``bytes``, ``chars``, ``bpe512``, ``bpe1024`` or ``bpe2048``."""
        return self._data.local_tokenizer(name)

    # --- models ---------------------------------------------------------------------------------------------------

    def _build(self, net: Net) -> nn.Module:
        vocabulary = None if isinstance(self.spec.teacher, Net) else self.teacher_vocabulary
        return models.build(net, self.tokenizer, vocabulary=vocabulary, classes=self.num_classes or None)

    @property
    def teacher_vocabulary(self) -> int:
        """Width of the teacher's output, padding of its embedding included."""
        if isinstance(self.spec.teacher, Net):
            return len(self.tokenizer)
        from transformers import AutoConfig

        if isinstance(self.spec.teacher, SmolLM2):
            from kdbench.tracks.llm.networks.smollm import converted

            return int(AutoConfig.from_pretrained(converted(self.cache)).vocab_size)
        from kdbench.tracks.llm.networks.hf import local_or_hub

        hub = self.spec.teacher
        config = AutoConfig.from_pretrained(
            local_or_hub(hub.name), revision=hub.revision, trust_remote_code=hub.trust_remote_code
        )
        return int(config.get_text_config().vocab_size)

    def build_student(self) -> nn.Module:
        student = self.spec.student
        if isinstance(student, Hub):
            from kdbench.tracks.llm.networks.hf import load_model

            model = load_model(student, self.device, trainable=True)
            return self.adopt(model, self.student_tokenizer) if student.own_tokenizer else model
        model = self._build(student)
        if student.stages:
            self._load_weights(model, self._trained(student, self.spec.student_identity()))
        return model

    def new_student(self, net: Net | None = None, tokenizer: Any = None) -> nn.Module:
        """A student-sized network with random weights (stream ``init``), optionally of another shape or tokenizer."""
        shape = net if net is not None else self.spec.student
        if not isinstance(shape, Net):
            raise JobError("the student of this task is a pretrained model; name the shape of a new one")
        with self.seeded("init"):
            if tokenizer is None or tokenizer is self.tokenizer:
                return self._build(shape).to(self.device)
            model = models.build(shape, tokenizer).to(self.device)
        return self.adopt(model, tokenizer)

    def adopt(self, model: nn.Module, tokenizer: Any) -> nn.Module:
        """Say that ``model`` reads and writes another tokenizer than the task's; it is evaluated and saved with it."""
        self._adopted[model] = tokenizer
        return model

    def tokenizer_of(self, model: nn.Module) -> Any:
        """The tokenizer that a model was adopted with, or else the task's."""
        return self._adopted.get(model, self.tokenizer)

    def place(self, model: Any) -> Any:
        """Move a network to the task's device, unless accelerate has spread it over several."""
        return model if getattr(model, "hf_device_map", None) is not None else super().place(model)

    def build_teacher(self) -> nn.Module:
        teacher = self.spec.teacher
        if not isinstance(teacher, Net):
            from transformers import AutoModelForCausalLM

            return AutoModelForCausalLM.from_config(self.load_teacher().config)
        return self._build(teacher)

    def load_teacher(self) -> nn.Module:
        teacher = self.spec.teacher
        if isinstance(teacher, Hub):
            from kdbench.tracks.llm.networks.hf import load_model

            return load_model(teacher, self.device, trainable=False)
        if isinstance(teacher, SmolLM2):
            from kdbench.tracks.llm.networks.smollm import load_model as load_smollm

            return load_smollm(self.cache)
        return self._load_weights(self._build(teacher), self.teacher_folder())

    def teacher_folder(self) -> Path:
        """Where a locally trained teacher is stored; it is trained now if it is not there."""
        assert isinstance(self.spec.teacher, Net)
        return self._trained(self.spec.teacher, self.spec.teacher_identity())

    @staticmethod
    def _load_weights(model: nn.Module, folder: Path) -> nn.Module:
        from safetensors.torch import load_file

        state = load_file(folder / "model.safetensors")
        missing, unexpected = model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
        tied = set(getattr(model, "_tied_weights_keys", None) or ())
        if unexpected or set(missing) - tied:
            raise JobError(f"{folder} does not fit the network: missing {missing}, unexpected {unexpected}")
        if hasattr(model, "tie_weights"):
            model.tie_weights()
        return model

    def trained_like_student(self, build: Callable[[], nn.Module], shape: dict[str, Any]) -> nn.Module:
        """A network of another shape, on the task's device, that begins where the task's student does.

        ``build()`` makes it from the global generators and ``shape`` says what it makes. Where the student goes through
        stages before the task begins, so does this network, once for all jobs; else its weights are those of the
        stream ``init``.
        """
        with self.seeded("init"):
            model = build()
        net = self.spec.student
        if isinstance(net, Net) and net.stages:
            identity = {**self.spec.student_identity(), "shape": shape}
            self._load_weights(model, self._trained(net, identity, build))
        return model.to(self.device)

    def _trained(self, net: Net, identity: dict[str, Any], build: Callable[[], nn.Module] | None = None) -> Path:
        def make(folder: Path) -> None:
            teachers.make(
                folder,
                net,
                build if build is not None else lambda: self._build(net),
                self._data.stage_rows,
                self.tokenizer,
                seed_of("llm", identity["role"], self.spec.teacher_seed) % 2**32,
                self.device,
                self.validate,
            )

        return self.cache.get("teacher", identity, make)

    def prepare(self) -> None:
        """Data, tokenizer, teacher, student initialisation, author, cached outputs and the capacity gap."""
        for name in self.kind.names:
            self._data.split(name)
        if isinstance(self.spec.teacher, Net):
            self.teacher_folder()
        elif isinstance(self.spec.teacher, SmolLM2):
            self.load_teacher()
        if isinstance(self.spec.student, Net) and self.spec.student.stages:
            self._trained(self.spec.student, self.spec.student_identity())
        self.kind.prepare(self)
        if self.spec.outputs is not None:
            for name in OUTPUT_SPLITS:
                self._outputs.get(name)
        if self.spec.gate is not None:
            self.gap()

    def gap(self) -> dict[str, float]:
        """Teacher and plainly trained student on the validation data; measured once per task, kept in the cache."""
        return gap.measured(self)

    def board_problems(self) -> list[str]:
        """Why the capacity gap, measured on the validation data, does not suffice for a board."""
        self.require_evaluation()
        return gap.gate(self.gap(), self.spec.gate) if self.spec.gate is not None else []

    # --- forwards -------------------------------------------------------------------------------------------------

    @cached_property
    def _outputs(self) -> Any:
        from kdbench.tracks.llm.outputs import OutputCache

        return OutputCache(self)

    def tokens(self, model: nn.Module, batch: TextBatch) -> TokenLogits:
        """One forward of ``model`` and the teacher's logits on the scored positions of ``batch``.

        Raises ``JobError`` for a model with a tokenizer of its own: the two do not speak of the same events.

        Rows of the training or validation split (``index`` >= 0) take the teacher from the cached outputs where the
        task has them (meter ``cached_teacher_queries``); all others go through the teacher (``teacher_queries``).
        Classification counts as one position per row, with its class as the target. Tagging has a position per word;
        words without a label have target -1 and an NLL of 0.
        """
        if model in self._adopted:
            raise JobError(
                "the student has a tokenizer of its own, so its probabilities are not of the teacher's tokens: take a "
                "method that compares across tokenizers (tag cross-tokenizer)"
            )
        if self.kind.tags:
            logits, labels = models.tag_logits(model, batch), models.tags_of(batch)
            sequence = (batch.labels != IGNORE).nonzero()[:, 0]
            teacher = self.teacher_logits(batch)[batch.labels != IGNORE]
            return TokenLogits(logits, teacher, partial(models.token_nll, logits, labels), labels, sequence)
        if self.classifies:
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
            nll, rows = partial(models.token_nll, logits, batch.labels), torch.arange(len(batch), device=self.device)
            return TokenLogits(logits, self.teacher_logits(batch), nll, batch.labels, rows)
        logits, targets = models.scored_logits(model, batch).float(), models.targets_of(batch)
        sequence = batch.scored.nonzero()[:, 0]
        if self.spec.outputs is None:
            teacher = self.scored_teacher(batch)
            width = min(teacher.shape[-1], logits.shape[-1])  # vocabularies may differ by padding
            nll = partial(models.token_nll, logits, targets)
            return TokenLogits(logits[:, :width], teacher[:, :width], nll, targets, sequence)
        from kdbench.tracks.llm.outputs import bucketed

        values, ids = self.kept_outputs(batch)
        student, gathered = bucketed(logits, ids, targets)
        return TokenLogits(student, values, lambda: gathered, targets, sequence, logits, ids)

    def nll(self, model: nn.Module, batch: TextBatch) -> Tensor:
        """(N,) float32 NLL in nats of the scored tokens of ``batch`` (classification: of the classes); no teacher.

        Tagging: of all words, 0 for those without a label.
        """
        if self.kind.tags:
            return models.token_nll(models.tag_logits(model, batch), models.tags_of(batch))
        if self.classifies:
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            return models.token_nll(logits, batch.labels)
        return models.token_nll(models.scored_logits(model, batch), models.targets_of(batch))

    def kept_outputs(self, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N, k+1) and ids (N, k) of the teacher's top-k events on the scored positions."""
        values, ids = self._outputs.scored(batch)
        return values, ids

    def large(self, model: nn.Module, batch: TextBatch, *, teacher: bool = True) -> Any:
        """A :class:`~kdbench.tracks.llm.heads.LargeBatch` where logits are better not held whole, else None."""
        from kdbench.tracks.llm.heads import large_batch

        return large_batch(self, model, batch, teacher=teacher)

    @torch.no_grad()
    def scored_teacher(self, batch: TextBatch, *, metered: bool = True) -> Tensor:
        """(N, V) float32 logits of the live teacher on the scored positions; ``teacher_queries`` where ``metered``."""
        teacher = self.teacher()
        before = self.budget.spent.get("teacher_queries", 0)
        device = next(teacher.parameters()).device
        logits = models.scored_logits(teacher, batch.to(device)).float().to(self.device)
        # the forward may or may not pass the hook that counts; outputs shared by all jobs are no cost of this one
        if self.phase == "train":
            self.budget.set("teacher_queries", before + (len(batch) if metered else 0))
            if not metered and before == 0:
                del self.budget.spent["teacher_queries"]
        return logits

    @torch.no_grad()
    def teacher_logits(self, batch: TextBatch) -> Tensor:
        """Teacher logits without gradient, float32: (B, L, V), unshifted; classes (B, C), tags (B, L, C)."""
        teacher = self.teacher()
        moved = batch.to(next(teacher.parameters()).device)
        return teacher(input_ids=moved.input_ids, attention_mask=moved.attention_mask).logits.float().to(self.device)

    # --- generation -----------------------------------------------------------------------------------------------

    def prompts(self, split: str, count: int, generator: torch.Generator) -> Prompts:
        """``count`` prompts drawn from a split: instructions, or the first quarter of a chunk."""
        return self.prompts_of(split, torch.randint(len(self.split(split)), (count,), generator=generator))

    def prompts_of(self, split: str, rows: Tensor) -> Prompts:
        """As :meth:`prompts`, those of chosen ``rows`` (N,) of the split, in their order."""
        chosen = self.split(split)
        sequences = chosen.sequences
        ids = [sequences.prompt(row, self.kind.prompt_tokens(sequences, row)) for row in rows.tolist()]
        return Prompts(ids, rows, split)

    def rollout(
        self,
        model: nn.Module,
        prompts: Prompts,
        *,
        max_new: int = 32,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        generator: torch.Generator | None = None,
    ) -> TextBatch:
        """Responses of ``model`` to prompts as a batch whose response tokens are scored; ``temperature`` 0 is greedy.

        Spends ``generated_tokens``; where ``model`` is the shared teacher also one ``teacher_queries`` per prompt.
        """
        pad = pad_id(self.tokenizer)
        responses = generate(
            model,
            prompts.ids,
            eos=self.tokenizer.eos_token_id,
            pad=pad,
            max_new=max_new,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            generator=generator,
        )
        self.budget.spend("generated_tokens", responses.generated)
        if self.phase == "train" and model is self._teacher and models.body_and_head(model) is not None:
            self.budget.spend("teacher_queries", len(prompts))
        return as_batch(prompts, responses, pad).to(self.device)

    # --- evaluation -----------------------------------------------------------------------------------------------

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Validation data: loss, perplexity, token_accuracy, and exact_match or (classifiers) accuracy, macro_f1."""
        was_training = model.training
        try:
            return self.kind.validate(self, model)
        finally:
            model.train(was_training)

    def score_test(self, model: nn.Module) -> Scores:
        return scoring.score(self, model)

    def divergences(self, model: nn.Module, split: str = "val") -> dict[str, float]:
        """``kl_teacher_student`` and ``kl_student_teacher`` on a split's references, nats per scored token."""
        return scoring.divergences(self, model, split)

    def harness(self, model: nn.Module, tasks: Sequence[str] | None = None) -> dict[str, float]:
        """Scores of lm-evaluation-harness on local task files, named ``harness/<task>/<metric>``; evaluation only."""
        self.require_evaluation()
        from kdbench.tracks.llm.harness import evaluate

        return evaluate(self, model, tuple(tasks) if tasks is not None else self.spec.evaluation.harness)

    # --- artifacts ------------------------------------------------------------------------------------------------

    def check(self, model: Any) -> None:
        self.require(model, nn.Module)
        if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
            raise ArtifactError(
                f"train returned a {type(model).__name__}, but the track 'llm' evaluates transformers models "
                "(with config and save_pretrained)"
            )

    def save(self, model: Any, folder: Path) -> None:
        """As transformers saves it, tokenizer included; adapters of peft are merged into the weights."""
        self.check(model)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer, adopted = self.tokenizer_of(model), model in self._adopted
        if hasattr(model, "merge_and_unload"):
            from copy import deepcopy

            model = deepcopy(model).merge_and_unload()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "kdbench.json").write_text(json.dumps({"task": self.spec.name, "own_tokenizer": adopted}) + "\n")

    def load(self, folder: Path) -> Any:
        """A model that :meth:`save` wrote, on the task's device."""
        import transformers

        both_parts = transformers.AutoConfig.from_pretrained(folder).is_encoder_decoder
        auto = getattr(transformers, "AutoModelForSeq2SeqLM" if both_parts else self.kind.auto)
        model = auto.from_pretrained(folder).to(self.device).eval()
        if json.loads((folder / "kdbench.json").read_text())["own_tokenizer"]:
            model = self.adopt(model, transformers.AutoTokenizer.from_pretrained(folder))
        return model
