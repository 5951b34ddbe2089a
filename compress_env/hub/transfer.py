"""`push_to_hub` and `pull_from_hub`: students and policies to the Hugging Face Hub and back, by its own client."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path

from compress_env.errors import UserError
from compress_env.extras import need
from compress_env.files import make_folder, write_text
from compress_env.hub.card import card
from compress_env.hub.client import LOGIN, bars, check_name, explained
from compress_env.hub.contents import CARD, GRAPH, LARGEST, LeftOut, check, checkable, stage
from compress_env.search.run import POLICY
from compress_env.students import WEIGHTS

CONTENTS = (WEIGHTS, GRAPH, POLICY)
"""One of them at least is in a repository of this package."""


def push_to_hub(
    source: str | Path, repo_id: str, *, private: bool = False, license: str | None = None, progress: bool = True
) -> str:
    """Put a distilled student, a policy, or both into a repository of models on the Hugging Face Hub, with a model card.

    Settings, numbers, plan, weights and ONNX travel, and no other files (`hub.contents`); of paths on this machine the last part.
    A repository that is there gets a new commit, and files of this package that are not pushed any more go from it.

    Args:
        source: A run folder, a folder of `distil`, or the file of a policy.
        repo_id: `USER/NAME`; the repository is made if it is not there.
        private: Whether only you see it.
        license: An identifier of the Hub, such as "mit" or "apache-2.0"; the card says that none is stated without one.
        progress: Whether to show on standard error how far it is.

    Returns:
        The repository's address.

    Raises:
        UserError: If there is nothing to push, no token, or the Hub refuses; before anything is sent if the repository is there, open
            to all, and was to be private.
    """
    need("a hub", "huggingface_hub")
    from huggingface_hub import HfApi, get_token

    check_name(repo_id)
    with tempfile.TemporaryDirectory(prefix="compress_env-") as place:
        prepared(source, repo_id, Path(place), license=license)
        if get_token() is None:
            raise UserError(f"there is no token for the Hugging Face Hub; {LOGIN}")
        api = HfApi(library_name="compress_env")
        with explained(repo_id), bars(progress):
            if not api.repo_exists(repo_id):
                api.create_repo(repo_id, private=private or None)
            elif private and not api.model_info(repo_id).private:
                raise UserError(f"{repo_id} is there and open to all; make it private on its page, or push to another name")
            done = api.upload_folder(
                repo_id=repo_id, folder_path=place, commit_message=f"Push {' and '.join(_kinds(Path(place)))} of compress_env",
                delete_patterns=list(LARGEST),
            )  # fmt: skip
    return str(done.repo_url)


def prepared(source: str | Path, repo_id: str, folder: str | Path, *, license: str | None = None) -> Path:
    """What `push_to_hub` would push, written into a folder to be looked at; nothing is sent.

    Args:
        source: As for `push_to_hub`.
        repo_id: Likewise.
        folder: A new or empty folder.
        license: As for `push_to_hub`.

    Returns:
        The folder.

    Raises:
        UserError: If there is nothing to push, or the folder has files.
    """
    need("a model card", "huggingface_hub")
    check_name(repo_id)
    folder = _empty(folder)
    stage(Path(source), folder)
    write_text(folder / CARD, card(folder, repo_id, license))
    return folder


def pull_from_hub(repo_id: str, out: str | Path, *, revision: str | None = None, progress: bool = True) -> Path:
    """Bring a student, a policy, or both from a repository of `push_to_hub` into a folder.

    Only files of the names that are pushed are asked for, and those of a size that such a file may have; what came is checked before
    it is put into the folder and before anything of it is used (`hub.contents.check`). Other files stay where they are.

    Args:
        repo_id: `USER/NAME`.
        out: A new or empty folder; `load_student` takes it.
        revision: A branch, a tag or a commit; the main branch if None.
        progress: Whether to show on standard error how far it is.

    Returns:
        The folder.

    Raises:
        UserError: If there is no such repository, nothing of this package is in it, or a file is not what its name says.
    """
    need("a hub", "huggingface_hub")
    from huggingface_hub import HfApi, snapshot_download

    check_name(repo_id)
    out = _empty(out)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=out) as place:
        with explained(repo_id), bars(progress):
            found = HfApi(library_name="compress_env").model_info(repo_id, revision=revision, files_metadata=True)
            sizes = {file.rfilename: file.size for file in found.siblings or ()}
            names = checkable(_wanted(sizes, repo_id), repo_id)
            if not any(name in CONTENTS for name in names):
                raise UserError(f"{repo_id} has none of {', '.join(CONTENTS)} to take; is it of compress-env push?")
            snapshot_download(repo_id, revision=found.sha, local_dir=place, allow_patterns=names, library_name="compress_env")
        files = [Path(place, name) for name in names]
        for file in files:
            if file.is_symlink() or not file.is_file():
                raise UserError(f"{file.name} of {repo_id} did not come; pull again")
            check(file, f"{file.name} of {repo_id}")
        for file in files:
            shutil.move(file, out / file.name)
    return out


def _wanted(sizes: dict[str, int | None], repo_id: str) -> list[str]:
    """The files of a repository that are asked for. Raises UserError for one that is too large, or whose size is not known."""
    names = [name for name in LARGEST if name in sizes]
    for name in names:
        size = sizes[name]
        if size is None or size > LARGEST[name]:
            raise UserError(f"{name} of {repo_id} has {size or 'unknown'} bytes, and a file of this name {LARGEST[name]:,} at most")
    others = sorted(name for name in sizes if name not in LARGEST and name != ".gitattributes")
    if others:
        some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        warnings.warn(LeftOut(f"{len(others)} other files of {repo_id} are left where they are: {some}"), stacklevel=3)
    return names


def _kinds(folder: Path) -> list[str]:
    has = {"a student": (folder / WEIGHTS).is_file(), "a policy": (folder / POLICY).is_file()}
    return [kind for kind, there in has.items() if there]


def _empty(folder: str | Path) -> Path:
    """A folder without files, made if it is not there. Raises UserError if it has any."""
    folder = Path(folder)
    make_folder(folder)
    if any(folder.iterdir()):
        raise UserError(f"{folder} has files; give a new or an empty folder")
    return folder
