"""Devices, second factor, sessions and passwords of an account, end to end over real processes."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis import Redis

from adapters import names
from app import rules
from app.client import Answer
from tests.accounts import NEW_PASSWORD, ask_login, enrolled, pushed, reset_code, sign_in
from tests.deployment import PASSWORD, Account, Deployment, event_of


@pytest.fixture(params=["ws", "rest"])
def either(request: pytest.FixtureRequest, guarded: Deployment) -> Deployment:
    return guarded.over(request.param)


async def test_a_login_on_a_new_device_needs_the_mailed_code_and_the_device_is_trusted_then(either: Deployment) -> None:
    async with either.account() as (client, account):
        detected = await ask_login(client, account, deviceName="phone")
        assert detected.event == "new_device_detected"
        assert detected.data["sentTo"] == f"{account.email[0]}***@example.com"
        assert detected.data["expiresIn"] == 600 and 10 <= detected.data["matchNumber"] <= 99
        assert event_of(await client.ask("sessions")) == ("error", "not_authenticated")

        code = await either.mailed_code(account.email, 2)
        wrong = await client.ask("verify_device", challenge=detected.data["challenge"], code="00000000")
        assert event_of(wrong) == ("device_verification_failed", "invalid_code")
        login = await client.ask("verify_device", challenge=detected.data["challenge"], code=code)

        assert login.event == "login_success"
        [verified] = login.progress
        assert verified["event"] == "device_verified"
        names = [device["deviceName"] for device in (await client.ask("account")).data["devices"]]
        assert names[0] == "phone" and len(names) == 2
        token = verified["data"]["deviceToken"]
        assert event_of(await ask_login(client, account, deviceToken=token)) == ("login_success", None)
        again = await client.ask("verify_device", challenge=detected.data["challenge"], code=code)
        assert event_of(again) == ("device_verification_failed", "challenge_expired")


async def test_a_device_that_is_not_to_be_trusted_gets_no_token(either: Deployment) -> None:
    async with either.account() as (client, account):
        detected = await ask_login(client, account)
        code = await either.mailed_code(account.email, 2)
        login = await client.ask("verify_device", challenge=detected.data["challenge"], code=code, trust=False)

        assert login.event == "login_success"
        assert [step["data"] for step in login.progress] == [{}]
        assert len((await client.ask("account")).data["devices"]) == 1


async def test_a_mailed_code_is_good_on_its_own_connection_only(guarded: Deployment) -> None:
    async with guarded.account() as (client, account), guarded.client(1) as other:
        detected = await ask_login(client, account)
        code = await guarded.mailed_code(account.email, 2)
        challenge = detected.data["challenge"]
        stolen = await other.ask("verify_device", challenge=challenge, code=code)
        assert event_of(stolen) == ("device_verification_failed", "challenge_expired")
        assert (await client.ask("verify_device", challenge=challenge, code=code)).event == "login_success"


async def test_who_sends_the_same_login_again_on_a_new_connection_goes_on_with_its_challenge(
    guarded: Deployment,
) -> None:
    key = "k" * 32
    async with guarded.account() as (client, account):
        detected = await ask_login(client, account, key=key)
    async with guarded.client(1) as again:
        same = await ask_login(again, account, key=key)
        assert same.data == detected.data
        code = await guarded.mailed_code(account.email, 2)
        assert (await again.ask("verify_device", challenge=same.data["challenge"], code=code)).event == "login_success"


async def test_five_wrong_codes_end_a_challenge(either: Deployment) -> None:
    async with either.account() as (client, account):
        challenge = (await ask_login(client, account)).data["challenge"]
        for _ in range(5):
            wrong = await client.ask("verify_device", challenge=challenge, code="00000000")
            assert event_of(wrong) == ("device_verification_failed", "invalid_code")
        code = await either.mailed_code(account.email, 2)
        late = await client.ask("verify_device", challenge=challenge, code=code)
        assert event_of(late) == ("device_verification_failed", "challenge_expired")


async def test_a_trusted_device_lets_a_new_one_in(guarded: Deployment) -> None:
    async with guarded.account() as (owner, account), guarded.client(1) as phone, guarded.client(1) as third:
        await sign_in(owner, account)
        detected = await ask_login(phone, account, deviceName="phone")
        attempt = await pushed(owner, "login_attempt")
        assert attempt["deviceName"] == "phone"
        await ask_login(third, account)  # one at a time
        none_yet = await phone.ask("verify_device", challenge=detected.data["challenge"])
        assert event_of(none_yet) == ("device_verification_failed", "invalid_code")

        number = detected.data["matchNumber"]
        login_id = attempt["loginId"]
        wrong = await owner.ask("approve_login", loginId=login_id, approve=True, matchNumber=(number + 1) % 100)
        assert event_of(wrong) == ("approval_failed", "invalid_code")
        decided = await owner.ask("approve_login", loginId=login_id, approve=True, matchNumber=number)

        assert (decided.event, decided.data) == ("login_decided", {"approved": True})
        assert await pushed(phone, "login_decided") == {"approved": True}
        login = await phone.ask("verify_device", challenge=detected.data["challenge"])
        assert login.event == "login_success" and "deviceToken" in login.progress[0]["data"]
        assert (await pushed(owner, "session_started"))["deviceName"] == "phone"
        late = await owner.ask("approve_login", loginId=login_id, approve=True, matchNumber=number)
        assert event_of(late) == ("approval_failed", "not_found")


async def test_a_trusted_device_keeps_a_new_one_out(guarded: Deployment) -> None:
    async with guarded.account() as (owner, account), guarded.client(1) as thief:
        await sign_in(owner, account)
        detected = await ask_login(thief, account)
        attempt = await pushed(owner, "login_attempt")
        decided = await owner.ask("approve_login", loginId=attempt["loginId"], approve=False)

        assert (decided.event, decided.data) == ("login_decided", {"approved": False})
        assert await pushed(thief, "login_decided") == {"approved": False}
        code = await guarded.mailed_code(account.email, 2)
        refused = await thief.ask("verify_device", challenge=detected.data["challenge"], code=code)
        assert event_of(refused) == ("device_verification_failed", "challenge_expired")


async def test_a_session_that_is_not_on_a_trusted_device_is_not_asked_and_may_not_answer(guarded: Deployment) -> None:
    async with guarded.account() as (owner, account), guarded.client(1) as guest, guarded.client() as phone:
        await sign_in(owner, account)
        challenge = (await ask_login(guest, account)).data["challenge"]
        code = await guarded.mailed_code(account.email, 2)
        await guest.ask("verify_device", challenge=challenge, code=code, trust=False)
        detected = await ask_login(phone, account)
        first = await pushed(owner, "login_attempt")
        asked = (await pushed(owner, "login_attempt"))["loginId"]
        assert first["loginId"] != asked
        refused = await guest.ask(
            "approve_login", loginId=asked, approve=True, matchNumber=detected.data["matchNumber"]
        )
        assert event_of(refused) == ("approval_failed", "not_found")
        while not guest.pushes.empty():
            assert guest.pushes.get_nowait()["event"] != "login_attempt"


async def test_a_second_factor_is_asked_for_and_its_codes_work_once(either: Deployment) -> None:
    async with either.account() as (client, account):
        await sign_in(client, account)
        assert event_of(await client.ask("enroll_2fa", password="not the password at all")) == (
            "2fa_enrollment_failed",
            "invalid_credentials",
        )
        assert event_of(await client.ask("confirm_2fa", code="123456")) == (
            "2fa_verification_failed",
            "challenge_expired",
        )
        app, recovery = await enrolled(client, account)
        assert len(set(recovery)) == 10
        data = (await client.ask("account")).data
        assert (data["has2fa"], data["recoveryCodesLeft"]) == (True, 10)

        asked = await ask_login(client, account, deviceToken=account.device_token)
        assert asked.event == "2fa_required" and asked.data["methods"] == ["totp", "recovery_code"]
        code = await app.code()
        wrong = await client.ask("verify_2fa", challenge=asked.data["challenge"], code="000000")
        assert event_of(wrong) == ("2fa_verification_failed", "invalid_code")
        login = await client.ask("verify_2fa", challenge=asked.data["challenge"], code=code)
        assert login.event == "login_success"
        assert [step["event"] for step in login.progress] == ["2fa_verified"]

        asked = await ask_login(client, account, deviceToken=account.device_token)
        used = await client.ask("verify_2fa", challenge=asked.data["challenge"], code=code)
        assert event_of(used) == ("2fa_verification_failed", "invalid_code")
        login = await client.ask("verify_2fa", challenge=asked.data["challenge"], recoveryCode=recovery[3].lower())
        assert login.event == "login_success"
        assert (await client.ask("account")).data["recoveryCodesLeft"] == 9

        renewed = await client.ask("new_recovery_codes", password=account.password, code=await app.code())
        assert renewed.event == "recovery_codes" and not set(recovery) & set(renewed.data["recoveryCodes"])
        assert (await client.ask("account")).data["recoveryCodesLeft"] == 10
        void = await client.ask("disable_2fa", password=account.password, recoveryCode=recovery[0])
        assert event_of(void) == ("2fa_verification_failed", "invalid_code")
        off = await client.ask("disable_2fa", password=account.password, recoveryCode=renewed.data["recoveryCodes"][0])
        assert off.event == "2fa_disabled"
        assert (await ask_login(client, account, deviceToken=account.device_token)).event == "login_success"


async def test_a_new_device_and_a_second_factor_come_one_after_the_other(either: Deployment) -> None:
    async with either.account() as (client, account):
        await sign_in(client, account)
        app, _ = await enrolled(client, account)
        async with either.client(1) as phone:
            detected = await ask_login(phone, account, deviceName="phone")
            code = await either.mailed_code(account.email, 2)
            asked = await phone.ask("verify_device", challenge=detected.data["challenge"], code=code)
            assert asked.event == "2fa_required"
            assert [step["event"] for step in asked.progress] == ["device_verified"]
            assert event_of(await phone.ask("account")) == ("error", "not_authenticated")
            login = await phone.ask("verify_2fa", challenge=asked.data["challenge"], code=await app.code())
            assert login.event == "login_success"
            assert {s["deviceName"] for s in (await phone.ask("sessions")).data["sessions"]} == {None, "phone"}


async def test_sessions_are_revoked_one_by_one_and_all_others_at_once(guarded: Deployment) -> None:
    async with guarded.account() as (owner, account), guarded.client(1) as second, guarded.client(1) as third:
        logins = [await sign_in(client, account) for client in (owner, second, third)]
        revoked = await owner.ask("revoke_session", sessionId=logins[1].data["sessionId"])
        assert revoked.event == "session_revoked"
        ended = await pushed(second, "session_ended")
        assert ended == {"sessionId": logins[1].data["sessionId"], "reason": "revoked"}
        assert await asyncio.wait_for(second.close_code, 5) == 4401
        again = await owner.ask("revoke_session", sessionId=logins[1].data["sessionId"])
        assert event_of(again) == ("session_not_found", "not_found")

        others = await owner.ask("revoke_other_sessions")
        assert (others.event, others.data) == ("sessions_revoked", {"count": 1})
        assert await asyncio.wait_for(third.close_code, 5) == 4401
        assert len((await owner.ask("sessions")).data["sessions"]) == 1
        own = await owner.ask("revoke_session", sessionId=logins[0].data["sessionId"])
        assert own.event == "session_revoked"
        assert await asyncio.wait_for(owner.close_code, 5) == 4401


async def test_somebody_elses_session_is_as_none(either: Deployment) -> None:
    async with either.account() as (ana, hers), either.account(1) as (bob, his):
        await sign_in(ana, hers)
        session = (await sign_in(bob, his)).data["sessionId"]
        refused = await ana.ask("revoke_session", sessionId=session)
        assert event_of(refused) == ("session_not_found", "not_found")
        assert len((await bob.ask("sessions")).data["sessions"]) == 1


async def test_a_forgotten_device_is_trusted_no_longer(either: Deployment) -> None:
    async with either.account() as (client, account):
        await sign_in(client, account)
        [device] = (await client.ask("account")).data["devices"]
        assert (await client.ask("forget_device", deviceRef=device["deviceRef"])).event == "device_forgotten"
        again = await client.ask("forget_device", deviceRef=device["deviceRef"])
        assert event_of(again) == ("device_not_found", "not_found")
        detected = await ask_login(client, account, deviceToken=account.device_token)
        assert detected.event == "new_device_detected"


async def test_a_forgotten_password_is_set_anew_with_the_mailed_link(either: Deployment) -> None:
    async with either.account() as (client, account), either.client(1) as stranger:
        login = await sign_in(client, account)
        asked = await stranger.ask("request_password_reset", email=account.email)
        assert (asked.event, asked.data) == ("password_reset_requested", {})
        old = await reset_code(either, account.email)
        await stranger.ask("request_password_reset", email=account.email)
        code = await reset_code(either, account.email, 2)

        async def reset(code: str, password: str = NEW_PASSWORD) -> Answer:
            change = {"email": account.email, "code": code, "newPassword": password}
            answer: Answer = await stranger.ask("reset_password", **change)
            return answer

        assert event_of(await reset(code, "password12345678")) == ("password_reset_failed", "password_common")
        assert event_of(await reset(code, "short")) == ("password_reset_failed", "password_too_short")
        assert event_of(await reset(old)) == ("password_reset_failed", "invalid_code")
        assert (await reset(code)).event == "password_reset"
        assert event_of(await reset(code)) == ("password_reset_failed", "invalid_code")
        refused = await stranger.ask("refresh", refreshToken=login.data["refreshToken"])
        assert event_of(refused) == ("refresh_failed", "token_revoked")
        refused = await ask_login(stranger, account, deviceToken=account.device_token)
        assert event_of(refused) == ("login_failure", "invalid_credentials")
        now = Account(account.email, NEW_PASSWORD, account.device_token)
        assert (await ask_login(stranger, now, deviceToken=account.device_token)).event == "login_success"


async def test_a_changed_password_ends_every_other_session(guarded: Deployment) -> None:
    async with guarded.account() as (owner, account), guarded.client(1) as other:
        await sign_in(owner, account)
        await sign_in(other, account)
        change = {"currentPassword": PASSWORD, "newPassword": NEW_PASSWORD}
        wrong = await owner.ask("change_password", **{**change, "currentPassword": "not the password at all"})
        assert event_of(wrong) == ("password_change_failed", "invalid_credentials")
        weak = await owner.ask("change_password", **{**change, "newPassword": "passwordpassword"})
        assert event_of(weak) == ("password_change_failed", "password_common")
        assert (await owner.ask("change_password", **change)).event == "password_changed"
        assert (await pushed(other, "session_ended"))["reason"] == "password_changed"
        assert await asyncio.wait_for(other.close_code, 5) == 4401
        assert len((await owner.ask("sessions")).data["sessions"]) == 1


async def test_a_silent_connection_is_told_when_time_ends_its_session(guarded: Deployment) -> None:
    async with guarded.account() as (client, account):
        login = await sign_in(client, account)
        key = names.SESSIONS + login.data["sessionId"]
        with Redis.from_url(guarded.redis_url) as redis:
            left_ms = 1500
            redis.hset(key, "created", int(time.time() * 1000) - rules.SESSION_ABSOLUTE_MS + left_ms)
        await client.ask("authenticate", accessToken=login.data["accessToken"])

        assert await pushed(client, "session_ended") == {"sessionId": login.data["sessionId"], "reason": "expired"}
        assert await asyncio.wait_for(client.close_code, 5) == 4401


async def test_who_proved_a_password_is_told_how_its_mail_goes(guarded: Deployment) -> None:
    async with guarded.account() as (client, account), guarded.client() as stranger:
        await ask_login(client, account)
        assert await pushed(client, "mail_status") == {"kind": "new_device", "status": "sent"}
        await stranger.ask("request_password_reset", email=account.email)
        await reset_code(guarded, account.email)
        assert stranger.pushes.empty()
