"""The type checker that tests apply to our functions; an int is a float, as ever."""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
