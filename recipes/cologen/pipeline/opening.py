"""Opens and saves a pipeline as one folder: the base in the diffusers layout, and the pool beside it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi, snapshot_download

from prw.errors import UnsupportedError
from recipes.cologen.flux import pixel_vae
from recipes.cologen.flux.folder import INDEX_FILE, Layout, check_base
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE
from recipes.cologen.pipeline.card import DATA_CARDS, README
from recipes.cologen.pipeline.pool import lora_names
from recipes.cologen.runs.files import POOL

PIXEL_VAE = ("pixel_vae", PixelUnshuffleVAE.__name__)
"""How a folder's index names the weightless VAE, whose module it carries."""


BESIDE = (INDEX_FILE, f"{POOL}/*", README, "LICENSE*", *DATA_CARDS)
"""What is fetched of a repository beside diffusers' own parts."""


class Opened(NamedTuple):
    """What is known of a base before anything of it is loaded."""

    own_vae: PixelUnshuffleVAE | None
    pool: Path | None
    folder: Path
    """Where its card lies, and its licence."""


def look_at(base: str | Path, layout: Layout, dtype: torch.dtype | None, revision: str | None) -> Opened:
    """Check the folder of a base and find what stock loading would not: the pixel VAE, and a pool.

    Args:
        base: A folder, or the name of a repository on the hub.
        layout: Of the family of bases.
        dtype: Of the VAE.
        revision: Of the repository.

    Raises:
        BaseModelError: The folder is no base of the family; see `check_base`.
    """
    folder = Path(base)
    if not folder.is_dir():
        # Diffusers fetches the folders of its own parts only.
        fetched = Path(snapshot_download(str(base), revision=revision, allow_patterns=list(BESIDE)))
        return Opened(None, fetched / POOL if (fetched / POOL).is_dir() else None, fetched)
    vae = (
        PixelUnshuffleVAE.from_pretrained(folder / "vae", dtype=dtype) if check_base(folder, layout) else None
    )
    return Opened(vae, folder / POOL if (folder / POOL).is_dir() else None, folder)


def refuse_what_cannot_be_saved(pipe: Any) -> None:
    """Refuse parts that the folder would hold in a state that does not come back.

    Raises:
        UnsupportedError: There are LoRAs, or the weights are offloaded or quantised.
    """
    for name in pipe.layout.parts:
        part = getattr(pipe, name, None)
        if part is None:
            raise UnsupportedError(f"the pipeline has no {name}, so it cannot be saved as a whole.")
        if not isinstance(part, torch.nn.Module):
            continue
        if names := lora_names(part):
            raise UnsupportedError(
                f"the {name} has the LoRA {', '.join(names)}, which a saved pipeline does not hold. Take it "
                "out (pipe.unload_lora_weights()) and load it again afterwards."
            )
        if any(parameter.is_meta for parameter in part.parameters()):
            raise UnsupportedError(
                f"the {name} is offloaded, so its weights are not there to be saved. Call "
                "pipe.remove_all_hooks() or load it again without offload, and save that."
            )
        if getattr(part, "hf_quantizer", None) is not None:
            raise UnsupportedError(
                f"the {name} is quantised. Save the pool alone (pipe.weave.save_pretrained) and give the "
                "quantised base at loading."
            )


def base_of(transformer: Any) -> Any:
    """The transformer as it is without the pool: another model over the very same weights.

    Only to be saved: it has stock processors and no adapters. Nothing is copied.
    """
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in transformer.state_dict().items()
        if ".prw_" not in name
    }
    with torch.device("meta"):
        plain = type(transformer).from_config(transformer.config)
    plain.load_state_dict(state, strict=True, assign=True)
    return plain


def add_pixel_vae(folder: Path) -> None:
    """Copy the module of the pixel VAE beside its file, where stock `FluxPipeline` looks for it."""
    shutil.copyfile(str(pixel_vae.__file__), folder / "vae" / "pixel_vae.py")


def upload(
    hub: HfApi,
    repository: str,
    save: Callable[[str], None],
    message: str,
    create_pr: bool,
    subfolder: str | None,
    keeps_card: bool,
) -> str:
    """Upload what `save` writes into a folder; return the address of the commit.

    Args:
        hub: With the account's token.
        repository: That is there already.
        save: Writes a pipeline into a folder.
        message: Of the commit.
        create_pr: Whether to open a pull request with it.
        subfolder: Where in the repository.
        keeps_card: Whether a card that the repository has is left as it is.
    """
    with tempfile.TemporaryDirectory() as draft:
        save(draft)
        if keeps_card and hub.file_exists(
            repository, README if subfolder is None else f"{subfolder}/{README}"
        ):
            (Path(draft) / README).unlink()
        return str(
            hub.upload_folder(
                repo_id=repository,
                folder_path=draft,
                path_in_repo=subfolder,
                commit_message=message,
                create_pr=create_pr,
            )
        )
