"""The layouts of data sets: every published set that the paper or its substitutes need, and your own."""

from recipes.cologen.data.layouts.coco import COCO_STUFF, LVIS
from recipes.cologen.data.layouts.conditions import (
    CAPTIONED_ADE20K,
    CAPTIONED_COCOSTUFF,
    MULTIGEN,
    MULTIGEN_DEPTH,
)
from recipes.cologen.data.layouts.edits import IMGEDIT, INSTRUCTPIX2PIX, MAGICBRUSH, OMNIEDIT, ULTRAEDIT
from recipes.cologen.data.layouts.layout import Layout, Reading
from recipes.cologen.data.layouts.own import OWN, PAIRED
from recipes.cologen.data.layouts.pictures import ADE20K, JOURNEYDB
from recipes.cologen.data.layouts.refcoco import REFCOCO
from recipes.cologen.data.layouts.stamps import STAMPS
from recipes.cologen.data.layouts.subjects import SUBJECTS200K, UNO

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        *(JOURNEYDB, ADE20K, COCO_STUFF),
        *(REFCOCO, LVIS),
        *(MULTIGEN, MULTIGEN_DEPTH, CAPTIONED_ADE20K, CAPTIONED_COCOSTUFF),
        *(SUBJECTS200K, UNO),
        *(OMNIEDIT, MAGICBRUSH, ULTRAEDIT, INSTRUCTPIX2PIX, IMGEDIT),
        *(STAMPS, OWN, PAIRED),
    )
}
"""By name, in the order of CoLoGen's stages."""

__all__ = ["LAYOUTS", "Layout", "Reading"]
