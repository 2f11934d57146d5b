import shutil

from isonomy.replay.ingest import ingest
from tests.replay import golden

shutil.rmtree(golden.FOLDER, ignore_errors=True)
golden.write(golden.FOLDER)
ingest(golden.FOLDER)
for file in golden.FOLDER.iterdir():
    if file.name not in ("journal.sqlite", "leaves"):
        file.unlink()
