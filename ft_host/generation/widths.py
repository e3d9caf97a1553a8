"""Rows of different lengths: which of them attend together.

Rows that attend together read as many columns as the longest of them has. An attention of their own saves short rows
the columns that only long ones have, and costs a call in each layer.
"""

from __future__ import annotations

from ft_host.models.bands import Band

# So many columns, of all rows together, take as long as one more call of attention. On CPU measured with a model of 9 M
# parameters: 0.2 us a column, 25 us a call. On other devices all rows attend together: there a pass is bound by its
# launches.
PRICE = {"cpu": 128}
MOVED = 4  # columns that are read in the time in which one is moved: it is read, copied, read and written
CALLS = 8  # calls of attention that take as long as those of a move


def bands_of(columns: list[int], price: int) -> tuple[list[Band], int]:
    """Return the bands of rows with so many columns each, in the order in which they are, and the columns that all of
    them read, with the price of each further band.

    A band ends where its rows would have read more columns in vain than another one costs. It isn't the best division,
    but takes one look at each row.
    """
    longest, behind = [], 0  # of each row, the most columns of it and those behind it
    for count in reversed(columns):
        behind = max(behind, count)
        longest.append(behind)
    longest.reverse()
    bands, area, vain, start = [], 0, 0, 0
    for index, count in enumerate(longest):
        vain += longest[start] - count
        if vain > price:
            bands.append(slice(start, index))
            start, vain = index, 0
    bands.append(slice(start, len(columns)))
    area = price * (len(bands) - 1) + sum((own.stop - own.start) * longest[own.start] for own in bands)
    return [Band(own, longest[0] - longest[own.start]) for own in bands], area


def exchanges(columns: list[int], price: int) -> tuple[list[int], list[int], int]:
    """Return which rows to move, and where to, so that each is in the band in which it would be if rows were sorted by
    length; and the columns that all of them read then."""
    order = sorted(range(len(columns)), key=columns.__getitem__, reverse=True)
    bands, least = bands_of([columns[index] for index in order], price)
    of, to = [], []
    for band in bands:
        rows, places = set(order[band.rows]), range(band.rows.start, band.rows.stop)
        of += sorted(row for row in rows if row not in places)
        to += [place for place in places if place not in rows]
    return of, to, least


def moving(columns: list[int], of: list[int], price: int) -> int:
    """Return what it costs to move these rows, in columns that are read meanwhile."""
    return CALLS * price + MOVED * len(of) * max((columns[index] for index in of), default=0)
