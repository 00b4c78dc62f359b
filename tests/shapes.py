"""Type checker for signatures in tests; as in PEP 484, an int is accepted for a float."""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
