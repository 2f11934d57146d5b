"""What a query gives: DuckDB's relation, and its forms for Arrow, pandas and polars.

Those packages are not Isonomy's requirements: who asks for a form that is not installed is told
which package to install. A form is complete in memory; `relation` is run piece by piece.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import FormatMissing

if TYPE_CHECKING:
    import pyarrow
    from duckdb import DuckDBPyRelation as _Relation
else:
    _Relation = object


class Answer(_Relation):
    """A relation over a connection of its own, which ends with it.

    Whatever DuckDB's relation has, it has too: `.columns`, `.fetchall()`, `.fetchmany(n)`,
    `.order(...)`, `.show()` and more.
    """

    def __init__(self, relation: _Relation, path: str) -> None:
        self.relation = relation
        self._path = path

    def arrow(self) -> pyarrow.Table:  # type: ignore[override]
        """Return a `pyarrow.Table`.

        Raises:
            FormatMissing: pyarrow is not installed.
        """
        self._require("pyarrow", "arrow")
        relation: Any = self.relation
        # Named so since DuckDB 1.4.1; `arrow` itself gives what it gives by version.
        table = getattr(relation, "to_arrow_table", None) or relation.fetch_arrow_table
        return table()

    def df(self, *, date_as_object: bool = False) -> Any:
        """Return a `pandas.DataFrame`.

        Raises:
            FormatMissing: pandas is not installed.
        """
        self._require("pandas", "df")
        return self.relation.df(date_as_object=date_as_object)

    def pl(self, batch_size: int = 1_000_000, *, lazy: bool = False) -> Any:
        """Return a `polars.DataFrame`.

        Raises:
            FormatMissing: polars, or pyarrow by which DuckDB makes it, is not installed.
        """
        self._require("polars", "pl")
        self._require("pyarrow", "pl")
        return self.relation.pl(batch_size, lazy=lazy)

    def _require(self, package: str, form: str) -> None:
        try:
            import_module(package)
        except ImportError as error:
            raise FormatMissing(
                f".{form}() needs the package {package}, which is not installed. Run: pip install "
                f"{package}",
                path=self._path,
                package=package,
            ) from error

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return getattr(self.relation, name)

        def __len__(self) -> int:
            return len(self.relation)

        def __repr__(self) -> str:
            return repr(self.relation)
