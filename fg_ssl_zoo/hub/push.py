"""Upload one folder with the Hub's own client.

The client does not upload unchanged files, and does not send a blob again that was complete before
a connection broke. The same command therefore continues an interrupted upload.
"""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from fg_ssl_zoo.backbones.fgssl_models import hub_repo, is_stock
from fg_ssl_zoo.backbones.weights.folder import CONFIG, WEIGHTS, as_json, join, weight_files
from fg_ssl_zoo.config import load_recipe, to_yaml
from fg_ssl_zoo.hub.card import render_card, usage_by_name
from fg_ssl_zoo.hub.checks import Checked, read_card
from fg_ssl_zoo.hub.export import CARD, PICTURE, RECIPE, RESULTS, read_results
from fg_ssl_zoo.hub.pretraining import FOLDER
from fg_ssl_zoo.hub.release import licensed


@dataclass(frozen=True)
class Pushed:
    """The result of an upload.

    Attributes:
        repo: `OWNER/NAME`.
        commit: The newest commit of the repository; `None` after a dry run.
        is_new: Whether this upload created the commit.
        files: Name and size in bytes of all files.
    """

    repo: str
    commit: str | None
    is_new: bool
    files: dict[str, int]


def target_repo(found: Checked, repo: str | None = None, org: str | None = None) -> str:
    """`OWNER/NAME` to publish to: as given, else the recipe's, else the default organisation's.

    Args:
        found: A checked folder.
        repo: `OWNER/NAME`.
        org: Owner; the model keeps its name. It takes precedence over `repo`.

    Raises:
        ValueError: The name is not valid on the Hub.
    """
    name = found.recipe.name
    if org is not None:  # an empty value is an unset shell variable, not a request for the default
        key, wanted = "--org", f"{org}/{name}"
    elif repo is not None:
        key, wanted = "--repo", repo
    else:
        key, wanted = "hub.repo", hub_repo(name, found.recipe.hub.repo)
    try:
        validate_repo_id(wanted)
    except HFValidationError as error:
        raise ValueError(f"{key}: {error}") from error
    if wanted.count("/") != 1:
        raise ValueError(f"{key}: {wanted}: OWNER/NAME is needed")
    return wanted


def push(found: Checked, repo: str, *, private: bool = False, dry_run: bool = False) -> Pushed:
    """Upload a checked folder in one commit; without changes there is no commit.

    Args:
        found: A checked folder.
        repo: `OWNER/NAME`; created if it does not exist.
        private: Whether a new repository is private.
        dry_run: Whether to stop before the first request.

    Raises:
        ValueError: The Hub refuses it; the message says what to do.
    """
    with tempfile.TemporaryDirectory(prefix="fg_ssl_zoo_") as place:
        staged = stage(found, repo, Path(place) / found.recipe.name)
        files = {
            path.relative_to(staged).as_posix(): path.stat().st_size
            for path in sorted(staged.rglob("*.*"))
        }
        if dry_run:
            return Pushed(repo, None, False, files)
        try:
            commit, is_new = _upload(staged, repo, private)
        except ValueError:
            raise
        except Exception as error:  # the client raises those of its HTTP library too
            raise ValueError(_explain(error, repo)) from error
    return Pushed(repo, commit, is_new, files)


def _upload(staged: Path, repo: str, private: bool) -> tuple[str, bool]:
    """The newest commit, and whether this upload created it."""
    api = HfApi()
    try:
        about = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private, exist_ok=True)
        about = api.model_info(repo)
    if private and not about.private:
        raise ValueError(f"{repo} is public; --private needs a new repository")
    info = api.upload_folder(
        repo_id=repo,
        folder_path=staged,
        commit_message=f"Publish {staged.name}",
        delete_patterns=[
            "*.bin",
            "*.safetensors",
            "*.index.json",
            f"{FOLDER}/*",
        ],  # files of earlier versions
    )
    return info.oid, info.oid != about.sha


def _explain(error: Exception, repo: str) -> str:
    """The error in one line, without request headers."""
    line = next(iter(str(error).splitlines()), "")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HfHubHTTPError) and status in (401, 403):
        owner = repo.partition("/")[0]
        return (
            f"the Hub refuses the upload to {repo} ({status}): a token that may write for {owner} "
            "is needed; `hf auth login` keeps one, HF_TOKEN names one; --org names another owner"
        )
    if type(error).__name__ == "OfflineModeIsEnabled":
        return f"{repo}: HF_HUB_OFFLINE is set, so nothing can be uploaded"
    return (
        f"the upload to {repo} broke off ({constants.ENDPOINT}, {type(error).__name__}: {line}); "
        "the same command goes on where it stopped"
    )


def stage(found: Checked, repo: str, folder: Path) -> Path:
    """Write the folder as it is uploaded: weights in one file, the repository in card and recipe.

    A card that was edited by hand is kept; only the name of the repository is replaced.
    """
    folder.mkdir(parents=True)
    if weight_files(found.folder) == [found.folder / WEIGHTS]:
        shutil.copyfile(found.folder / WEIGHTS, folder / WEIGHTS)
    else:
        join(found.folder, folder / WEIGHTS)
    recipe = replace(found.recipe, hub=replace(found.recipe.hub, repo=repo))
    config = licensed(found.config, recipe.hub.license)
    (folder / CONFIG).write_text(as_json(config), encoding="utf-8")
    (folder / RECIPE).write_text(to_yaml(recipe), encoding="utf-8")
    (folder / RESULTS).write_text(as_json(found.results), encoding="utf-8")
    if (found.folder / PICTURE).is_file():
        shutil.copyfile(found.folder / PICTURE, folder / PICTURE)
    if FOLDER in found.results:
        shutil.copytree(found.folder / FOLDER, folder / FOLDER)
    card, before = read_card(found.folder), load_recipe(found.folder / RECIPE)
    if card == render_card(found.backbone, before, read_results(found.folder)):
        card = render_card(found.backbone, recipe, found.results)
    else:
        card = card.replace(hub_repo(before.name, before.hub.repo), repo)
    (folder / CARD).write_text(card, encoding="utf-8")
    return folder


def loading_lines(found: Checked, repo: str) -> list[str]:
    """Python that opens the repository: by timm, by our name, by transformers.

    Args:
        found: The uploaded folder.
        repo: Its repository.
    """
    by_timm = f'timm.create_model("hf-hub:{repo}", pretrained=True)'
    ours = usage_by_name(found.recipe.name, repo)
    lines = [by_timm, ours, f'AutoModel.from_pretrained("{repo}")']
    needs_us = not is_stock(found.config["architecture"])
    return [
        f"{line}  # after import fg_ssl_zoo" if needs_us or line is ours else line for line in lines
    ]
