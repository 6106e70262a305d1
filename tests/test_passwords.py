"""Passwords: pepper, Argon2id, bounds, and one evaluation an attempt."""

from __future__ import annotations

import resource
import time
import unicodedata

import argon2
import pytest

from app.passwords import NOBODY, Hasher, PasswordCheck, Unverifiable
from app.settings import Argon2
from tests.making import CHEAP, PASSWORD, PEPPER, secret, secrets_of

USER = "0wrk1-user"
HASHER = Hasher(CHEAP, PEPPER)
RECORD = HASHER.hash(USER, PASSWORD)
PHC = RECORD.partition(":")[2]


class Counting(Hasher):
    """The real one, counting its Argon2 evaluations."""

    evaluations = 0

    def hash(self, user_id: str, password: str) -> str:
        self.evaluations += 1
        return super().hash(user_id, password)

    def verify(self, record: str, user_id: str, password: str) -> bool:
        self.evaluations += 1
        return super().verify(record, user_id, password)


def test_a_record_verifies_its_password_and_no_other() -> None:
    assert HASHER.verify(RECORD, USER, PASSWORD)
    for wrong in ("", PASSWORD + " ", PASSWORD.upper(), PASSWORD[:-1], unicodedata.normalize("NFD", PASSWORD + "é")):
        assert not HASHER.verify(RECORD, USER, wrong)


def test_passwords_of_two_hundred_characters_that_differ_in_the_last_are_two() -> None:
    record = HASHER.hash(USER, "x" * 199 + "a")
    assert HASHER.verify(record, USER, "x" * 199 + "a")
    assert not HASHER.verify(record, USER, "x" * 199 + "b")


def test_a_password_of_1024_bytes_counts_to_its_last() -> None:
    record = HASHER.hash(USER, "é" * 511 + "ab")
    assert not HASHER.verify(record, USER, "é" * 511 + "ac")


def test_a_record_names_its_pepper_and_is_argon2id_with_the_given_cost() -> None:
    record = Hasher(Argon2(memory_kib=64, passes=2, lanes=1), secrets_of("new1", "old1")).hash(USER, PASSWORD)
    kid, _, phc = record.partition(":")
    assert kid == "new1"
    found = argon2.extract_parameters(phc)
    assert (found.type, found.memory_cost, found.time_cost, found.parallelism) == (argon2.Type.ID, 64, 2, 1)
    assert (found.salt_len, found.hash_len) == (16, 32)


def test_the_cost_of_a_deployment_that_sets_none_is_at_least_owasps_floor() -> None:
    cost = Argon2()
    assert (cost.memory_kib, cost.passes, cost.lanes) >= (19456, 2, 1)


def test_two_records_of_one_password_differ() -> None:
    assert HASHER.hash(USER, PASSWORD) != HASHER.hash(USER, PASSWORD)


def test_the_store_and_the_right_password_verify_nothing_without_the_pepper() -> None:
    for guess in (PASSWORD, f"{USER}\0{PASSWORD}"):
        with pytest.raises(argon2.exceptions.VerifyMismatchError):
            argon2.PasswordHasher().verify(PHC, guess)
    thief = Hasher(CHEAP, secrets_of("thf1"))
    assert not thief.verify(f"thf1:{PHC}", USER, PASSWORD)
    with pytest.raises(Unverifiable):
        thief.verify(RECORD, USER, PASSWORD)


def test_a_record_copied_to_another_account_verifies_nothing() -> None:
    assert not HASHER.verify(RECORD, "0wrk1-other", PASSWORD)


def test_account_and_password_cannot_be_shifted_into_each_other() -> None:
    assert not HASHER.verify(HASHER.hash("ab", "c"), "a", "bc")


def test_an_old_pepper_still_verifies_and_its_records_are_outdated() -> None:
    rotated = Hasher(CHEAP, secrets_of("pep2", "pep1"))
    assert rotated.verify(RECORD, USER, PASSWORD)
    assert rotated.outdated(RECORD)
    assert not rotated.outdated(rotated.hash(USER, PASSWORD))


@pytest.mark.parametrize(
    ("cost", "outdated"),
    [
        pytest.param(CHEAP, False, id="the same"),
        pytest.param(Argon2(memory_kib=16, passes=1, lanes=1), True, id="more memory"),
        pytest.param(Argon2(memory_kib=8, passes=2, lanes=1), True, id="more passes"),
    ],
)
def test_a_record_of_another_cost_is_outdated_and_verifies_all_the_same(cost: Argon2, outdated: bool) -> None:
    hasher = Hasher(cost, PEPPER)
    assert hasher.outdated(RECORD) is outdated
    assert hasher.verify(RECORD, USER, PASSWORD)


def planted(**parameters: str) -> str:
    values = {"m": "8", "t": "1", "p": "1"} | parameters
    salt_and_hash = PHC.split("$", 4)[4]
    return f"pep1:$argon2id$v=19$m={values['m']},t={values['t']},p={values['p']}${salt_and_hash}"


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(planted(m=str(8 * 1024 * 1024)), id="8 GiB"),
        pytest.param(planted(m="1048577"), id="1 KiB past 1 GiB"),
        pytest.param(planted(m="9" * 20), id="more memory than 64 bits"),
        pytest.param(planted(t="17"), id="17 passes"),
        pytest.param(planted(t="4294967295"), id="four billion passes"),
        pytest.param(planted(m="1024", p="17"), id="17 lanes"),
    ],
)
def test_a_planted_record_beyond_all_sense_is_refused_at_once_and_takes_no_memory(record: str) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(Unverifiable):
        HASHER.verify(record, USER, PASSWORD)
    assert time.perf_counter() - began < 0.05
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.parametrize(
    "record",
    [
        pytest.param("", id="nothing"),
        pytest.param(PHC, id="no pepper"),
        pytest.param("pep1:", id="nothing but a pepper"),
        pytest.param(f"gone:{PHC}", id="a pepper that is gone"),
        pytest.param("pep1:password", id="a password"),
        pytest.param("pep1:$2b$12$" + "a" * 53, id="bcrypt"),
        pytest.param(planted(m="x"), id="memory that is no number"),
        pytest.param(planted(m="-8"), id="negative memory"),
        pytest.param(planted(t="0"), id="no pass"),
        pytest.param(RECORD.replace("argon2id", "argon9"), id="another algorithm"),
        pytest.param(RECORD.partition(",p=")[0], id="cut off"),
        pytest.param(RECORD + "é", id="not ASCII"),
    ],
)
def test_what_is_no_record_of_ours_is_unverifiable_and_never_verified(record: str) -> None:
    with pytest.raises(Unverifiable):
        HASHER.verify(record, USER, PASSWORD)


def test_the_word_of_an_unverifiable_record_repeats_nothing_of_its_hash() -> None:
    for record in (PHC, f"gone:{PHC}", planted(m="9" * 20), planted(m="x")):
        with pytest.raises(Unverifiable) as caught:
            HASHER.verify(record, USER, PASSWORD)
        assert PHC[-20:] not in str(caught.value)


# --- one request's hashing ----------------------------------------------------------------------------------------


def test_an_unknown_account_costs_one_evaluation_with_todays_cost_and_never_verifies() -> None:
    hasher = Counting(CHEAP, PEPPER)
    made = hasher.evaluations  # the decoy
    for guess in (PASSWORD, "", NOBODY):
        assert PasswordCheck(hasher).verify(None, "", guess) is False
    assert hasher.evaluations - made == 3
    assert not hasher.outdated(hasher.decoy)


def test_known_and_unknown_accounts_cost_the_same_number_of_evaluations() -> None:
    hasher = Counting(CHEAP, PEPPER)
    spent = []
    for record, user, guess in ((None, "", PASSWORD), (RECORD, USER, "wrong"), (RECORD, USER, PASSWORD)):
        before = hasher.evaluations
        PasswordCheck(hasher).verify(record, user, guess)
        spent.append(hasher.evaluations - before)
    assert spent == [1, 1, 1]


def test_what_was_computed_in_one_round_of_deciding_is_not_computed_again() -> None:
    hasher = Counting(CHEAP, PEPPER)
    check = PasswordCheck(hasher)
    before = hasher.evaluations
    assert check.verify(RECORD, USER, PASSWORD)
    assert check.verify(RECORD, USER, PASSWORD)
    first = check.hash(USER, PASSWORD)
    assert check.hash(USER, PASSWORD) == first
    assert hasher.evaluations - before == 2
    assert check.verify(first, USER, PASSWORD)  # another record is another question
    assert not check.verify(RECORD, "0wrk1-other", PASSWORD)
    assert hasher.evaluations - before == 4


def test_what_one_password_came_to_does_not_answer_for_another() -> None:
    """A change of password has two in one request."""
    hasher = Counting(CHEAP, PEPPER)
    check = PasswordCheck(hasher)
    before = hasher.evaluations
    assert not check.verify(RECORD, USER, "wrong")
    assert check.verify(RECORD, USER, PASSWORD)
    assert not check.verify(RECORD, USER, "wrong")
    made = [check.hash(USER, password) for password in ("one", "other", "one")]
    assert made[0] == made[2] != made[1]
    assert hasher.verify(made[1], USER, "other")
    assert not hasher.verify(made[1], USER, "one")
    assert hasher.evaluations - before == 6


def test_an_unknown_account_is_not_answered_with_what_a_known_one_came_to() -> None:
    check = PasswordCheck(HASHER)
    assert check.verify(RECORD, USER, PASSWORD) is True
    assert check.verify(None, USER, PASSWORD) is False


def test_no_secret_is_in_a_repr() -> None:
    check = PasswordCheck(HASHER)
    check.verify(RECORD, USER, PASSWORD)
    shown = f"{HASHER!r} {check!r} {secret('pep1')!r} {PEPPER!r}"
    assert PASSWORD not in shown
    assert repr(secret("pep1").value) not in shown
