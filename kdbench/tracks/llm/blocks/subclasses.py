"""Encoders whose head tells subclasses apart and whose logits are those of the classes.

Importing this module makes the automatic classes of transformers know the type, so that ``from_pretrained`` reads what
``save_pretrained`` wrote.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from kdbench.losses.subclasses import class_logits
from kdbench.tracks.llm.data.encoding import TextBatch


class SubclassBertConfig(BertConfig):
    """As BERT's, with the number of subclasses of each class."""

    model_type = "kdbench-subclass-bert"
    subclasses: int = 1


class SubclassHead(nn.Module):
    """A linear layer over C * S subclasses, and log-sum-exp within each class; (B, D) to (B, C)."""

    def __init__(self, width: int, classes: int, subclasses: int) -> None:
        super().__init__()
        self.subclasses = subclasses
        self.linear = nn.Linear(width, classes * subclasses)

    def forward(self, embedding: Tensor) -> Tensor:
        return class_logits(self.linear(embedding), self.subclasses)


class SubclassBert(BertForSequenceClassification):
    """``.logits`` (B, C) have as softmax the subclass probabilities summed within each class."""

    config_class = SubclassBertConfig

    def __init__(self, config: SubclassBertConfig) -> None:
        super().__init__(config)
        self.classifier = SubclassHead(config.hidden_size, config.num_labels, config.subclasses)
        nn.init.normal_(self.classifier.linear.weight, std=config.initializer_range)
        nn.init.zeros_(self.classifier.linear.bias)
        self.post_init()


AutoConfig.register(SubclassBertConfig.model_type, SubclassBertConfig, exist_ok=True)
AutoModelForSequenceClassification.register(SubclassBertConfig, SubclassBert, exist_ok=True)


def with_subclasses(model: BertForSequenceClassification, subclasses: int) -> SubclassBert:
    """An encoder with the body of ``model`` (copied) and a new head of ``subclasses`` (S) for each class.

    Every subclass starts at the row of its class in ``model``, so that the probabilities of the classes start close to
    those of ``model``; noise from the global generators, of the deviation with which rows are initialised, tells the
    subclasses apart.
    """
    settings = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    wide = SubclassBert(SubclassBertConfig(**{**settings, "subclasses": subclasses}))
    wide.bert.load_state_dict(model.bert.state_dict())
    head = wide.classifier.linear
    with torch.no_grad():
        head.weight += model.classifier.weight.cpu().repeat_interleave(subclasses, 0)
        head.bias += model.classifier.bias.cpu().repeat_interleave(subclasses, 0)
    return wide.to(next(model.parameters()).device)


def subclass_logits(model: SubclassBert, batch: TextBatch) -> Tensor:
    """(B, C * S) float32 logits of the subclasses."""
    embedding = model.bert(input_ids=batch.input_ids, attention_mask=batch.attention_mask).pooler_output
    return model.classifier.linear(model.dropout(embedding)).float()
