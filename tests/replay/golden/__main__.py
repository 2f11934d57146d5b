import shutil

from tests.replay import golden

from isonomy.replay.ingest import ingest

shutil.rmtree(golden.NEWEST, ignore_errors=True)
golden.write(golden.NEWEST)
ingest(golden.NEWEST)
for file in golden.NEWEST.iterdir():
    if file.name not in ("journal.sqlite", "leaves"):
        file.unlink()
