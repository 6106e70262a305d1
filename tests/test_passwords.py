"""Passwords: pepper, Argon2id, bounds, one evaluation an attempt, and which are taken."""

from __future__ import annotations

import resource
import time
import unicodedata

import argon2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zxcvbn.matching import RANKED_DICTIONARIES

from app.messages import Code
from app.passwords import NOBODY, Hasher, PasswordCheck, Unverifiable, weakness
from app.settings import Argon2
from tests.making import CHEAP, EMAIL, PASSWORD, PEPPER, Counting, secret, secrets_of

many = settings(max_examples=200, deadline=None, database=None)

USER = "0wrk1-user"
HASHER = Hasher(CHEAP, PEPPER)
RECORD = HASHER.hash(USER, PASSWORD)
PHC = RECORD.partition(":")[2]


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


# --- which passwords are taken ------------------------------------------------------------------------------------

SERVICE = "https://login.test"


def refused(password: str, least: int = 15, email: str = EMAIL, service: str = SERVICE) -> Code | None:
    return weakness(unicodedata.normalize("NFKC", password), least, email, service)


@pytest.mark.parametrize(
    "password",
    [
        "password1234567", "passwordpassword", "PASSWORDPASSWORD", "drowssapdrowssap", "P@ssw0rdP@ssw0rd",
        "password password", "pass-word-pass-word", "1234567890123456", "000000000000000", "111111111111112",
        "iloveyouiloveyou", "letmeinletmein123", "adminadminadmin", "trustno1trustno1", "footballbaseball",
        "sunshine princess", "superman12345678", "ncc1701ncc1701d", "Summer2024Summer2024",
    ],
)  # fmt: skip
def test_a_password_that_is_common_is_refused(password: str) -> None:
    assert refused(password) is Code.PASSWORD_COMMON


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("a" * 15, id="one letter"),
        pytest.param("a" * 1024, id="one letter as often as it can be sent"),
        pytest.param(" " * 15, id="spaces"),
        pytest.param("\U0001f511" * 256, id="one picture"),
        pytest.param("e\u0301" * 30, id="one letter that is written as two"),
        pytest.param("ab" * 512, id="two letters"),
        pytest.param("abcdefghijklmnop", id="the alphabet"),
        pytest.param("987654321987654321", id="backwards"),
        pytest.param("qwertyuiopasdfgh", id="a keyboard's rows"),
        pytest.param("qazwsxedcrfvtgb", id="a keyboard's columns"),
        pytest.param("1q2w3e4r5t6y7u8i", id="a keyboard's zigzag"),
        pytest.param("2024-01-31 2024-01-31", id="a date"),
        pytest.param("31/01/1990 ana", id="a date and little more"),
    ],
)
def test_a_pattern_is_refused(password: str) -> None:
    assert refused(password, least=8) is Code.PASSWORD_COMMON


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("ana.maria@example.com", id="the own address"),
        pytest.param("ANA.MARIA@EXAMPLE.COM", id="in capitals"),
        pytest.param("ana.maria@example.com1!", id="and little more"),
        pytest.param("ana.maria@example.com ana.maria@example.com", id="twice"),
        pytest.param("mariamariamaria7", id="a part of it"),
        pytest.param("example.com example", id="its host"),
        pytest.param("login.test login.test", id="the service's host"),
        pytest.param("https://login.test", id="the service's address"),
        pytest.param("loginmariaexample", id="all of them"),
        pytest.param("login password 1", id="and a common word"),
    ],
)
def test_what_belongs_to_the_address_or_the_service_counts_for_nothing(password: str) -> None:
    assert refused(password, email="ana.maria@example.com") is Code.PASSWORD_COMMON


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("vbnrqzkwmtplhxd", id="15 lowercase letters: there is no rule of composition"),
        pytest.param("correct horse battery staple", id="a passphrase"),
        pytest.param("seven brown owls in a boat", id="another"),
        pytest.param("my login is for the garden gate", id="with a word of the service"),
        pytest.param("maria has three old bicycles", id="with a word of the address"),
        pytest.param("\U0001f511\U0001f422\U0001f335\U0001f6b2\U0001f3bb\U0001f34b\U0001f9f2\U0001fa81"
                     "\U0001f994\U0001f6f6\U0001f388\U0001f9e9\U0001f30b\U0001fa90\U0001f991", id="15 pictures"),
        pytest.param("длинный хвост кота", id="Cyrillic"),
        pytest.param("今天我的狗喜欢在雨中跑步和游泳", id="Chinese"),
        pytest.param("\xe9toile d\xfcster \xe7edilha", id="accents"),
        pytest.param("!@#$%^&*()_+-=[]{}", id="signs only, without a keyboard's row: they are many"),
        pytest.param("a" * 40 + "vbnrqzkwmtplhxd", id="hard at its end only"),
        pytest.param("vbnrqzkwmtplhxd" + "a" * 900, id="hard at its beginning only"),
    ],
)  # fmt: skip
def test_what_is_hard_to_guess_is_taken_whatever_it_is_made_of(password: str) -> None:
    assert refused(password, email="ana.maria@example.com") is None


@pytest.mark.parametrize(
    ("password", "least", "code"),
    [
        ("vbnrqzkwmtplhx", 15, Code.PASSWORD_TOO_SHORT),
        ("vbnrqzkwmtplhxd", 15, None),
        ("vqzkwmt", 8, Code.PASSWORD_TOO_SHORT),
        ("vqzkwmtp", 8, None),
        ("", 15, Code.PASSWORD_TOO_SHORT),
        ("\U0001f511" * 14, 15, Code.PASSWORD_TOO_SHORT),
        ("password", 15, Code.PASSWORD_TOO_SHORT),
        ("password", 8, Code.PASSWORD_COMMON),
        ("vbnrqzkwmtplhxd", 64, Code.PASSWORD_TOO_SHORT),
    ],
)
def test_the_length_in_code_points_is_looked_at_first(password: str, least: int, code: Code | None) -> None:
    assert refused(password, least) is code


LETTERS_OF_SIGNS = "4@8({[<369&#!|1/\\0$57+%2"  # each of which zxcvbn may read for a letter


@pytest.mark.parametrize(
    "password",
    [
        pytest.param(LETTERS_OF_SIGNS * 42, id="signs that may be letters"),
        pytest.param("p@$$w0rd1!|" * 93, id="a common password in signs"),
        pytest.param("1/1/11 2.2.22 " * 73, id="dates"),
        pytest.param("qwertyuiop[]asdfghjkl;zxcvbnm,./" * 32, id="a keyboard"),
        pytest.param("passwordmonkeydragonlovesexgod" * 34, id="words"),
        pytest.param("0123456789" * 102, id="digits"),
        pytest.param("abcabcabd" * 113, id="repeats in repeats"),
        pytest.param("\ufdfa" * 341, id="what NFKC makes eighteen times as long"),
    ],
)
def test_looking_at_a_password_is_never_slow(password: str) -> None:
    """Of what a stranger may send: it is done before anybody is known, and in the time of others. The CPU's time."""
    assert 900 < len(password.encode()) <= 1024
    spent = []
    for _ in range(2):
        before = time.thread_time()
        refused(password)
        spent.append(time.thread_time() - before)
    assert min(spent) < 0.5


@given(st.text(min_size=1, max_size=60), st.integers(1, 3))
@many
def test_any_text_is_taken_or_refused_and_raises_nothing(password: str, times: int) -> None:
    assert refused(password * times, least=1) in (None, Code.PASSWORD_COMMON)


def test_one_requests_words_are_no_others() -> None:
    """zxcvbn keeps what it was told last for all threads."""
    own = "vbnrqzkwmtplhxd"
    assert refused(own, email=f"{own}@example.com") is Code.PASSWORD_COMMON
    assert refused(own) is None
    assert not any(own in words for words in RANKED_DICTIONARIES.values())
