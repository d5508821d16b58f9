"""Errors that a user can act on."""


class SpecVitError(Exception):
    """A problem with an input, a file or the installation; the message ends with the next thing to try."""


def missing_extra(what: str, extra: str) -> SpecVitError:
    """Build the error for an optional dependency that is not installed.

    Parameters
    ----------
    what : str
        What needed it, as the start of a sentence.
    extra : str
        The extra of this distribution that supplies it.
    """
    return SpecVitError(f"{what} needs the '{extra}' extra: pip install 'specvit-deploy[{extra}]'")
