"""The one error a user is meant to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """Something the user can mend: a path, a config value, a file, a device, a full disk.

    The message is one line that names the cause and what to do about it. For several problems,
    :meth:`of` writes a line with their number and one numbered line for each. The command line
    prints the message without a traceback and exits with status 2. Any other exception that
    reaches a user is a bug.
    """

    @classmethod
    def of(cls, problems: Iterable[str]) -> UserError:
        """One error for several problems, each a line of text. Repeated lines appear once."""
        lines = list(dict.fromkeys(problems))
        if len(lines) == 1:
            return cls(lines[0])
        return cls(
            "\n".join(
                [
                    f"{len(lines)} problems:",
                    *(f"{n}. {line}" for n, line in enumerate(lines, start=1)),
                ]
            )
        )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it, the latest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
