"""A benchmark of one's own: which city is the capital, by likelihood."""

from npd_ascend.bench.registry import Chosen, Source, register
from npd_ascend.bench.rows import Row
from npd_ascend.errors import UserError


@register("capitals")
class Capitals(Chosen):
    """Rows such as ``{"country": "France", "cities": ["Lyon", "Paris"], "capital": "Paris"}``."""

    title = "Capitals"
    sources = (Source("capitals.jsonl", "your own file", "yours"),)
    count = 3

    def asked(self, row: Row) -> str:
        return f"The capital of {row.text('country')} is"

    def choices(self, row: Row) -> list[str]:
        return [f" {city}" for city in row.fields["cities"]]

    def right(self, row: Row) -> int:
        cities, capital = row.fields["cities"], row.text("capital")
        if capital not in cities:
            raise UserError(f"{row.where}: {capital!r} is none of the cities")
        return int(cities.index(capital))
