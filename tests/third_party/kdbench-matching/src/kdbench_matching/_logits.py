"""What both methods share."""

from torch import Tensor


def centred(logits: Tensor) -> Tensor:
    """Logits with mean 0 over the classes, (..., C) each: the same distribution, in float32."""
    logits = logits.float()
    return logits - logits.mean(-1, keepdim=True)
