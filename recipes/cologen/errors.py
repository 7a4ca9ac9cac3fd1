"""Errors of the CoLoGen recipe: each says what was expected, what came, where, and what to do about it.

CologenError
├── RunFolderError (ValueError)        a run folder is missing, unfinished, or of another run
├── DataError (ValueError)             what is to be trained on has a fault
│   ├── FolderDataError                a folder of pictures (--data folder:PATH)
│   ├── DataSetError                   a data set of `data.sets`: its files, columns, captions, settings
│   └── BrokenPictureError             one row that cannot be read; training skips, counts and lists it
├── AnnotatorError (ValueError)        what should make a control map is missing, or makes something else
├── TooManyBrokenError (RuntimeError)  more rows were skipped than `data.max_broken` allows
├── PromptError (ValueError)           a prompt the base cannot read
├── PictureError (ValueError)          a picture that cannot be used as asked
├── BaseModelError (ValueError)        a folder or model that is no FLUX base this recipe can use
├── MachineError (RuntimeError)        a setting asks for a package or a GPU that is not there
├── LaunchError (RuntimeError)         processes were started in a way that does not let them work together
├── ShapeError (ValueError)            a tensor whose shape does not fit
├── GuidanceError (ValueError)         a guidance scale that the base lacks or needs
├── VocabularyError (ValueError)       a word that cannot be one token of the tiny tokenizers
├── RoutingQuestionError (ValueError)  a question to the routing of a generation that it cannot answer
└── SourceStreamError (RuntimeError)   the two-step attention is missing, or something is in its way
"""

from __future__ import annotations


class CologenError(Exception):
    """Anything this recipe refuses to do."""


class RunFolderError(CologenError, ValueError):
    """A run folder is missing something, is unfinished, or belongs to another run."""


class DataError(CologenError, ValueError):
    """What is to be trained on has a fault."""


class FolderDataError(DataError):
    """A folder of pictures has a fault; the message names the file and, where there is one, the line."""


class DataSetError(DataError):
    """A data set of `data.sets` has a fault: files, columns, captions, or the settings that name it."""


class BrokenPictureError(DataError):
    """One row cannot be read: a picture or mask is broken. Training skips, counts and lists such rows."""


class AnnotatorError(CologenError, ValueError):
    """What should make control maps cannot be loaded, or what it makes is no map."""


class TooManyBrokenError(CologenError, RuntimeError):
    """More rows had to be skipped than `data.max_broken` allows."""


class PromptError(CologenError, ValueError):
    """A prompt holds words that the base cannot read."""


class PictureError(CologenError, ValueError):
    """A picture is missing, broken, or cannot be used the way it was asked for."""


class BaseModelError(CologenError, ValueError):
    """A folder or a set of models is not a FLUX base that this recipe can use."""


class MachineError(CologenError, RuntimeError):
    """A setting asks this machine for something that it cannot do: a package or a GPU is missing."""


class LaunchError(CologenError, RuntimeError):
    """Several processes were started in a way that does not let them work together."""


class ShapeError(CologenError, ValueError):
    """A tensor's shape does not fit what it is used for."""


class GuidanceError(CologenError, ValueError):
    """A guidance scale was given to a base without guidance embedding, or withheld from one that needs it."""


class VocabularyError(CologenError, ValueError):
    """A word of a closed vocabulary cannot be one token in both tokenizers."""


class RoutingQuestionError(CologenError, ValueError):
    """The routing of a generation was asked of something that was not recorded."""


class SourceStreamError(CologenError, RuntimeError):
    """The source stream's attention processors are missing, or something stands in their way."""
