"""Every claim of the ledger obeys the rules."""

import pytest

from attar import ledger
from attar.claims.claim import check

IDS = [row.id for row in (*ledger.rows(), *ledger.claims()) if ledger.exists(row.claim)]


@pytest.mark.parametrize("id", IDS)
def test_the_claim_obeys_the_rules(id):
    cls = ledger.claim_class(id)
    check(cls)
    assert cls.id == id
    assert cls.title == next(row.title for row in (*ledger.rows(), *ledger.claims()) if row.id == id)
    assert len(cls.methods) == len(set(cls.methods))
    assert all(ledger.find(method) for method in cls.methods)


def test_claims_are_many():
    assert len(IDS) > 50
