"""Text for terminals and pipes of any encoding."""

import codecs
import io
import sys

_ERRORS = __name__  # name of the codec error handler
_IN_ASCII = {"±": "+-", "≥": ">=", "≤": "<=", "²": "^2", "✓": "+", "…": "."}


def accept_any_text() -> None:
    """Let stdout and stderr write every character, whatever their encoding.

    Characters that the encoding lacks are replaced: signs such as ± by ASCII, others by escapes
    such as ``\\xe9``. Bytes of a file name that are not valid text are written unchanged.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def make_encodable(text: str, encoding: str) -> str:
    """Return text as a stream of this encoding shows it, to align columns by its width."""
    return text.encode(encoding, _ERRORS).decode(encoding, "replace")


def _replace_character(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    char, end = error.object[error.start], error.start + 1
    if "\udc80" <= char <= "\udcff":  # Python's stand-in for a byte of a file name
        return bytes([ord(char) - 0xDC00]), end
    return _IN_ASCII.get(char) or ascii(char)[1:-1], end


codecs.register_error(_ERRORS, _replace_character)
