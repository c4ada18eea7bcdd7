"""Which class of transformers runs the text of a model: a causal model's own, or a wrapper that
shows images, sounds or videos to one and is given text alone."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Mapped = Mapping[type, Any]
WRAPPERS = (
    (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    (AutoModelForMultimodalLM, MODEL_FOR_MULTIMODAL_LM_MAPPING),
)


def auto_class(settings: "PretrainedConfig") -> Any:
    """What loads a model of these settings. transformers itself says of a model that none of its
    classes continues a text."""
    if type(settings) not in cast(Mapped, MODEL_FOR_CAUSAL_LM_MAPPING):
        for auto, mapped in WRAPPERS:
            if type(settings) in cast(Mapped, mapped) and _takes_text_alone(mapped, settings):
                return auto
    return AutoModelForCausalLM


def _takes_text_alone(mapped: Any, settings: "PretrainedConfig") -> bool:
    """Whether the class wraps a text model with a cache, and can do without all but text."""
    accepted = inspect.signature(mapped[type(settings)].forward).parameters
    needed = [
        name
        for name, parameter in accepted.items()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
        and name not in ("self", "input_ids")
    ]
    wraps = settings.get_text_config() is not settings
    return wraps and not needed and {"input_ids", "past_key_values"} <= accepted.keys()
