"""`tools/make_crops.py --ray` with clips and crops in an object store: copy, cut on the node, and copy back.

OUT/
    settings.json            how clips are cut: written before the first crop
    images/CLIP/00000-0.png  its crops
    records/CLIP.json        its report; written after its crops, so that a clip with a record is done
    crops.csv                the table of all records, written at the end
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dfdc.cluster.cutting import Call, CutFaces, Cutter, run_cutters
from dfdc.cluster.lease import check_free, hold
from dfdc.cluster.places import Place, fetch
from dfdc.data.clips import METADATA, LabelledClip, group_families, read_metadata, refuse_mixed
from dfdc.data.crop_folder import IMAGES, CutSettings, Report
from dfdc.errors import DataError, MachineError, VideoError

RECORDS, SETTINGS = "records", "settings.json"


@dataclass(frozen=True)
class StoredClip:
    """A clip in a store: what its metadata say, and its URL."""

    clip: LabelledClip
    url: str


def read_stored(sources: Iterable[str], held_out: Iterable[str] = ()) -> list[StoredClip]:
    """The clips that the metadata.json of each folder lists.

    Args:
        sources: paths or URLs of folders.
        held_out: more of them, whose clips get the split "val".

    Raises:
        DataError: see `dfdc.data.clips.read_metadata`.
    """
    stored = [entry for source in sources for entry in _read_folder(source)]
    more = [entry for source in held_out for entry in _read_folder(source)]
    return stored + [replace(entry, clip=replace(entry.clip, split="val")) for entry in more]


def _read_folder(source: str) -> list[StoredClip]:
    place = Place(source)
    try:
        content = place.read(METADATA)
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(
            f"{place.full(METADATA)}: cannot be read ({type(error).__name__}); labelled clips need it"
        ) from error
    with tempfile.TemporaryDirectory(prefix="dfdc-") as folder:
        (Path(folder) / METADATA).write_bytes(content)
        clips = read_metadata(Path(folder))
    return [StoredClip(clip, place.full(clip.name)) for clip in clips]


class StoreCutter(Cutter):
    """Copies families to its node, has its child cut them, and copies the crops to the store."""

    def __init__(self, out: str, settings: CutSettings, urls: Mapping[str, str]) -> None:
        self.out, self.settings, self.urls = Place(out), settings, urls
        self._home = tempfile.TemporaryDirectory(prefix="dfdc-")
        super().__init__(CutFaces(Path(self._home.name) / "out", settings))

    def cut(self, call: Call) -> list[Report]:
        """Cut one family; clips that the store does not give are reported as the plain tool reports absent ones."""
        clips, out = Path(self._home.name) / "clips", Path(self._home.name) / "out"
        for folder in (clips, out):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        there, lost = [], {}
        for clip in call.family:
            target = clips / clip.name
            try:
                copy = fetch(self.urls[clip.name], clips)
                if copy.parent == clips:
                    copy.rename(target)
                else:
                    target = copy
            except VideoError:
                pass  # it is absent: what is cut of its family is cut without it
            except MachineError as error:
                lost[clip.name] = str(error)
            there.append(replace(clip, path=target))
        if lost:  # cut without its original, a fake would never be laid over it
            reason = "; ".join(lost.values())
            return [Report(clip.name, "error", reason) for clip in there if clip.name not in call.done]
        found = super().cut(Call(tuple(there), call.done))
        reports = [replace(report, path=self.urls[report.video]) for report in found]
        for report in reports:
            if (out / IMAGES / report.video).is_dir():
                self._store(out / IMAGES / report.video, report)
        return reports

    def _store(self, folder: Path, report: Report) -> None:
        for path in sorted(folder.iterdir()):
            if path.suffix != ".json":
                self.out.write(f"{IMAGES}/{report.video}/{path.name}", path.read_bytes())
        self.out.write(f"{RECORDS}/{report.video}.json", json.dumps(asdict(report)).encode())


def cut_in_store(
    stored: Sequence[StoredClip], out: str, settings: CutSettings, *, address: str | None = None
) -> tuple[str, list[Report]]:
    """Cut the clips of a store into a store.

    Args:
        stored: the clips, of all folders.
        out: path or URL for the crops.
        settings: how to cut; whole frames are not cut here.
        address: see `dfdc.cluster.engine.cluster`.

    Returns:
        The URL of crops.csv, and the reports of this run.

    Raises:
        DataError: clips of one face have different splits, the crops there were cut with other settings, or nothing
            was cut.
        InputError, MachineError: the store or the cluster cannot be used, or another job cuts there.
    """
    place = Place(out)
    families = group_families(entry.clip for entry in stored)
    for family in families:
        refuse_mixed(family)
    urls = {entry.clip.name: entry.url for entry in stored}
    check_free(place)
    place.check_writable()
    with hold(place) as lease:
        text = (json.dumps(asdict(settings), indent=1) + "\n").encode()
        with suppress(FileNotFoundError):
            if place.read(SETTINGS) != text:
                raise DataError(f"{place.full(SETTINGS)}: cut with other settings; use the same, or name another --out")
        place.write(SETTINGS, text)
        names = {clip.name for family in families for clip in family}
        done = frozenset(name.removesuffix(".json") for name in place.names(RECORDS)) & names
        wanted = [family for family in families if any(clip.name not in done for clip in family)]
        reports = [
            report
            for family in run_cutters(wanted, StoreCutter, (out, settings, urls), address=address, done=done)
            for report in family
        ]
        lease.check()
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(settings.columns)
        n_rows = 0
        for record in _read_records(place):
            for row in record.rows:
                writer.writerow(row)
                n_rows += 1
        if not n_rows:
            raise DataError(f"{out}: no clip gave an image, for example {reports[0] if reports else 'none was cut'}")
        place.write("crops.csv", table.getvalue().encode())
    return place.full("crops.csv"), reports


def _read_records(place: Place) -> Iterator[Report]:
    """The reports of all clips that are done, by name."""
    for name in place.names(RECORDS):
        record = json.loads(place.read(f"{RECORDS}/{name}"))
        yield Report(**{**record, "rows": tuple(tuple(row) for row in record["rows"])})
