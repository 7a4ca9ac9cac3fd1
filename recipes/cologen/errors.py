"""Errors of the CoLoGen recipe: each says what was expected, what came, where, and what to do about it.

CologenError
├── RunFolderError (ValueError)        a run folder is missing, unfinished, or of another run
├── FolderDataError (ValueError)       a folder of pictures (--data folder:PATH) has a fault
├── PromptError (ValueError)           a prompt the base cannot read
├── PictureError (ValueError)          a picture that cannot be used as asked
├── BaseModelError (ValueError)        a folder or model that is no FLUX base this recipe can use
├── ShapeError (ValueError)            a tensor whose shape does not fit
├── GuidanceError (ValueError)         a guidance scale that the base lacks or needs
├── VocabularyError (ValueError)       a word that cannot be one token of the tiny tokenizers
└── SourceStreamError (RuntimeError)   the two-step attention is missing, or something is in its way
"""

from __future__ import annotations


class CologenError(Exception):
    """Anything this recipe refuses to do."""


class RunFolderError(CologenError, ValueError):
    """A run folder is missing something, is unfinished, or belongs to another run."""


class FolderDataError(CologenError, ValueError):
    """A folder of pictures has a fault; the message names the file and, where there is one, the line."""


class PromptError(CologenError, ValueError):
    """A prompt holds words that the base cannot read."""


class PictureError(CologenError, ValueError):
    """A picture is missing, broken, or cannot be used the way it was asked for."""


class BaseModelError(CologenError, ValueError):
    """A folder or a set of models is not a FLUX base that this recipe can use."""


class ShapeError(CologenError, ValueError):
    """A tensor's shape does not fit what it is used for."""


class GuidanceError(CologenError, ValueError):
    """A guidance scale was given to a base without guidance embedding, or withheld from one that needs it."""


class VocabularyError(CologenError, ValueError):
    """A word of a closed vocabulary cannot be one token in both tokenizers."""


class SourceStreamError(CologenError, RuntimeError):
    """The source stream's attention processors are missing, or something stands in their way."""
