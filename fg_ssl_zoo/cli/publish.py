"""`fgssl publish`: upload trained models to the Hub, or write them as released models."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fg_ssl_zoo.cli.arguments import add_verb

if TYPE_CHECKING:
    from fg_ssl_zoo.hub.checks import Checked


def add_verbs(verbs: Any) -> None:
    """Add the verb `publish`."""
    publish = add_verb(
        verbs,
        "publish",
        "Check trained models and upload them to the Hub, one commit for each model.",
    )
    publish.add_argument(
        "folders", nargs="+", metavar="FOLDER", type=Path,
        help="a run, its export, or a released folder; several folders are allowed: published/*",
    )  # fmt: skip
    where = publish.add_mutually_exclusive_group()
    where.add_argument("--repo", metavar="OWNER/NAME", help="repository, for a single folder")
    where.add_argument("--org", help="owner of the repositories; each model keeps its name")
    where.add_argument(
        "--to", type=Path, metavar="FOLDER",
        help="do not upload: write the release, in half precision, to FOLDER/NAME",
    )  # fmt: skip
    publish.add_argument(
        "--license", help="SPDX name such as cc-by-nc-4.0, if the recipe has no hub.license"
    )
    publish.add_argument(
        "--about",
        metavar="TEXT",
        help="with --to: first sentence of the card, for example on which images it was trained",
    )
    publish.add_argument(
        "--backbone-only", action="store_true",
        help="leave out pretraining/, which others need to continue the training",
    )  # fmt: skip
    publish.add_argument(
        "--private", action="store_true", help="create new repositories as private"
    )
    publish.add_argument("--dry-run", action="store_true", help="run all checks, send nothing")
    publish.set_defaults(run=_publish, out_folders=("to",))


def _publish(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.hub.checks import check
    from fg_ssl_zoo.hub.push import target_repo

    # single files, as in published/*, are ignored
    folders = [path for path in chosen.folders if not path.is_file()] or chosen.folders[:1]
    if chosen.repo and len(folders) > 1:
        raise ValueError("--repo names one repository; --org OWNER takes several folders")
    if chosen.about and not chosen.to:
        raise ValueError("--about goes with --to; an upload sends the card as it is")
    if chosen.to:
        _release(folders, chosen)
        return
    found = [  # check all folders before any is sent
        check(folder, chosen.license, backbone_only=chosen.backbone_only) for folder in folders
    ]
    repos = [target_repo(one, chosen.repo, chosen.org) for one in found]
    if twice := {repo for repo in repos if repos.count(repo) > 1}:
        raise ValueError(f"two folders would go to {min(twice)}")
    _upload(found, repos, chosen)


def _upload(found: "Sequence[Checked]", repos: Sequence[str], chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.hub.push import loading_lines, push

    for one, repo in zip(found, repos, strict=True):
        done = push(one, repo, private=chosen.private, dry_run=chosen.dry_run)
        size = sum(done.files.values()) / 1e6
        if done.commit is None:
            print(f"{repo}: would be published, {len(done.files)} files, {size:.1f} MB, under "
                  f"{one.recipe.hub.license}")  # fmt: skip
        elif done.is_new:
            print(f"{repo}: published, {size:.1f} MB, commit {done.commit}")
        else:
            print(f"{repo}: nothing has changed since commit {done.commit}")
    print("\nload with\n\nimport fg_ssl_zoo, timm\nfrom transformers import AutoModel\n")
    for one, repo in zip(found, repos, strict=True):
        print("\n".join(loading_lines(one, repo)))


def _release(folders: Sequence[Path], chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.backbones.weights.folder import weight_files
    from fg_ssl_zoo.backbones.weights.locate import published_root
    from fg_ssl_zoo.config import load_recipe, recipe_files
    from fg_ssl_zoo.hub.checks import check
    from fg_ssl_zoo.hub.export import RECIPE
    from fg_ssl_zoo.hub.release import pin, release

    if chosen.dry_run:
        for folder in folders:
            print(f"{check(folder, chosen.license).recipe.name}: may be released")
        return
    root = published_root()
    for folder in folders:
        target = release(folder, chosen.to, license=chosen.license, about=chosen.about)
        sha256 = load_recipe(target / RECIPE).hub.sha256 or ""
        size = sum(path.stat().st_size for path in weight_files(target)) / 1e6
        print(f"{target}: {size:.1f} MB, sha256 {sha256}")
        recipe = recipe_files().get(target.name)
        if recipe and root and target.parent == root.resolve():
            done = pin(recipe, sha256)
            print(
                f"{recipe}: " + ("hub.sha256 is written" if done else f"write hub.sha256: {sha256}")
            )
