import shutil

from tests.replay import golden

from isonomy.replay.ingest import ingest

shutil.rmtree(golden.FOLDER, ignore_errors=True)
golden.write(golden.FOLDER)
ingest(golden.FOLDER)
for file in golden.FOLDER.iterdir():
    if file.name not in ("journal.sqlite", "leaves"):
        file.unlink()
