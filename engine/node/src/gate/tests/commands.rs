//! What administrators ask of the keeper, and what it keeps.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use thalweg_protocol::limits::MANAGED_BYTES_MAX;

use super::super::config::AccessConfig;
use super::super::fetch;
use super::super::keeper::{HashResult, HashTask, Keeper, Now, Output};
use super::super::limits::{FREE_FAILURES_PER_USER, ISSUER_ASK_S, LISTED_MAX};
use super::super::link::{Question, Told, Wanted};
use super::super::users;
use super::issuer::{Mood, TestIssuer, TestKey};
use super::*;
use crate::identity::tests::TempDir;

const REMOTE: ([u8; 4], u16) = ([127, 0, 0, 1], 7);

/// A keeper whose work for others is done at once.
struct Office {
    keeper: Keeper,
    now: Now,
    asked: u64,
}

impl Office {
    fn open(dir: &TempDir, config: AccessConfig) -> Self {
        let now = Now { wall_us: NOW * 1_000_000, mono_us: 0 };
        let keeper = Keeper::open(dir.path(), config, now).expect("opened");
        Self { keeper, now, asked: 0 }
    }

    fn pass(&mut self, s: u64) {
        (self.now.wall_us, self.now.mono_us) = (self.now.wall_us + s * 1_000_000, self.now.mono_us + s * 1_000_000);
        self.keeper.set_time(self.now);
        self.keeper.timeout();
        self.work();
    }

    fn handle(&mut self, wanted: Wanted) -> Told {
        self.asked += 1;
        self.keeper.handle(0, Question { number: self.asked, remote: SocketAddr::from(REMOTE), wanted });
        self.work().expect("an answer")
    }

    /// Does everything there is to do; gives the last answer.
    fn work(&mut self) -> Option<Told> {
        let mut answer = None;
        while let Some(output) = self.keeper.poll() {
            match output {
                Output::Tell(asked, told) => {
                    assert_eq!((asked.core, asked.number), (0, self.asked));
                    assert!(answer.replace(told).is_none(), "one answer to one question");
                }
                Output::Hash(job) => {
                    let result = match job.task {
                        HashTask::Make => HashResult::Made(users::hash(&job.password.0).map_err(|e| e.to_string())),
                        HashTask::Compare(hash) => {
                            HashResult::Compared(hash.is_some_and(|hash| users::verify(&job.password.0, &hash.0)))
                        }
                    };
                    self.keeper.hashed(job.ticket, result);
                }
                Output::Fetch(number, issuer) => self.keeper.issuer_answered(number, fetch::keys_of(&issuer)),
                Output::Model(..) => unreachable!("there are no models"),
            }
        }
        answer
    }

    fn manage(&mut self, who: &Arc<Principal>, command: &Value) -> Result<Value, RejectCode> {
        let json = command.to_string().into();
        match self.handle(Wanted::Manage { principal: Arc::clone(who), json }) {
            Told::Managed(Ok(json)) => {
                let answer: Value = serde_json::from_slice(&json).expect("JSON");
                assert_eq!(answer["ok"], true);
                assert!(json.len() <= MANAGED_BYTES_MAX);
                Ok(answer)
            }
            Told::Managed(Err(reject)) => Err(reject.code),
            told => panic!("{told:?}"),
        }
    }

    fn login(&mut self, tenant: &str, user: &str, password: &str) -> Result<String, Reject> {
        let password = Secret(password.into());
        match self.handle(Wanted::Login { tenant: name(tenant), user: name(user), password }) {
            Told::LoggedIn(result) => result.map(|(token, _)| token),
            told => panic!("{told:?}"),
        }
    }

    fn check(&self, token: &str) -> Result<(Name, Name), RejectCode> {
        match self.keeper.snapshot().check(token, self.now.wall_s()) {
            Ok(admission) => Ok((admission.tenant, admission.user)),
            Err(Refusal::Final(reject)) => Err(reject.code),
            Err(Refusal::AskIssuer(_)) => Err(RejectCode::IssuerUnavailable),
        }
    }
}

fn principal(tenant: &str, user: &str, texts: &[&str]) -> Arc<Principal> {
    Arc::new(Principal::new(name(tenant), name(user), SessionId(9), allow(texts)))
}

fn node_admin() -> Arc<Principal> {
    principal("default", "root", &["read:*", "write:*", "ask:*", "admin:*"])
}

fn tenant_admin(tenant: &str) -> Arc<Principal> {
    principal(tenant, "boss", &["read:*", "write:team-*", "admin:access"])
}

fn text<'a>(answer: &'a Value, field: &str) -> &'a str {
    answer[field].as_str().expect("a text")
}

#[test]
fn tokens_users_and_keys_live_and_end() {
    let dir = TempDir::new();
    let mut office = Office::open(&dir, AccessConfig::default());
    let boss = tenant_admin("acme");
    let ask = |office: &mut Office, command: Value| office.manage(&boss, &command);
    let answer = ask(&mut office, json!({"command":"token","user":"ada","allow":["read:*"],"ttl_s":600})).expect("ok");
    let (token, id) = (text(&answer, "token").to_owned(), text(&answer, "id").to_owned());
    assert_eq!(office.check(&token), Ok((name("acme"), name("ada"))));
    let add = json!({"command":"user-add","user":"bob","password":"correct horse","allow":["read:*"]});
    ask(&mut office, add.clone()).expect("ok");
    assert_eq!(ask(&mut office, add), Err(RejectCode::ParameterInvalid), "there is one already");
    let bob = office.login("acme", "bob", "correct horse").expect("in");
    assert_eq!(office.check(&bob), Ok((name("acme"), name("bob"))));
    let answer = ask(&mut office, json!({"command":"key-create","user":"bot","allow":["write:team-a"],"note":"n"}));
    let answer = answer.expect("ok");
    let (key, key_id) = (text(&answer, "key").to_owned(), text(&answer, "id").to_owned());
    assert_eq!(office.check(&key), Ok((name("acme"), name("bot"))));
    let list = ask(&mut office, json!({"command":"key-list"})).expect("ok");
    assert_eq!(list["keys"][0]["id"], key_id.as_str());
    assert!(!list.to_string().contains(key.rsplit('_').next().expect("a secret")), "a key is told once");
    let list = ask(&mut office, json!({"command":"user-list"})).expect("ok");
    assert_eq!((&list["users"][0]["user"], &list["more"]), (&json!("bob"), &json!(false)));
    assert!(!list.to_string().contains("argon2"), "no hash is told");

    // By the id of one, of the other by its text.
    let other = ask(&mut office, json!({"command":"token","user":"ada","allow":[],"ttl_s":600})).expect("ok");
    let other = text(&other, "token").to_owned();
    ask(&mut office, json!({"command":"revoke","token":id,"reason":"lost"})).expect("ok");
    assert_eq!((office.check(&token), office.check(&other).is_ok()), (Err(RejectCode::TokenRevoked), true));
    ask(&mut office, json!({"command":"revoke","token":other})).expect("ok");
    assert_eq!(office.check(&other), Err(RejectCode::TokenRevoked));
    assert_eq!(ask(&mut office, json!({"command":"revoke","token":"nonsense"})), Err(RejectCode::RequestInvalid));

    ask(&mut office, json!({"command":"key-remove","key":key_id})).expect("ok");
    assert_eq!(office.check(&key), Err(RejectCode::TokenInvalid));
    // Another password ends what the old one gave, and a token of the same second is good.
    ask(&mut office, json!({"command":"user-password","user":"bob","password":"battery staple"})).expect("ok");
    assert_eq!(office.check(&bob), Err(RejectCode::TokenRevoked));
    assert_eq!(office.login("acme", "bob", "correct horse").map_err(|r| r.code), Err(RejectCode::LoginFailed));
    let bob = office.login("acme", "bob", "battery staple").expect("in");
    assert!(office.check(&bob).is_ok());
    // Everything survives the keeper.
    drop(office);
    let mut office = Office::open(&dir, AccessConfig::default());
    assert_eq!(office.check(&token), Err(RejectCode::TokenRevoked));
    assert!(office.check(&bob).is_ok() && office.login("acme", "bob", "battery staple").is_ok());
    office.manage(&boss, &json!({"command":"user-remove","user":"bob"})).expect("ok");
    assert_eq!(office.check(&bob), Err(RejectCode::TokenRevoked));
    assert_eq!(office.login("acme", "bob", "battery staple").map_err(|r| r.code), Err(RejectCode::LoginFailed));
    let unknown = json!({"command":"user-remove","user":"bob"});
    assert_eq!(office.manage(&boss, &unknown), Err(RejectCode::UserUnknown));
}

#[test]
fn one_tenant_reaches_no_other() {
    let dir = TempDir::new();
    let mut office = Office::open(&dir, AccessConfig::default());
    let root = node_admin();
    for tenant in ["acme", "other"] {
        let user = json!({"command":"user-add","tenant":tenant,"user":"ada","password":"12345678","allow":["read:*"]});
        office.manage(&root, &user).expect("the node's may");
    }
    let key = json!({"command":"key-create","tenant":"other","user":"bot","allow":[]});
    let key = office.manage(&root, &key).expect("ok");
    let token = json!({"command":"token","tenant":"other","user":"eve","allow":[],"ttl_s":60});
    let token = office.manage(&root, &token).expect("ok");
    let (key, key_id) = (text(&key, "key"), text(&key, "id"));
    // One with every permission in its own tenant is still of its own tenant.
    for boss in [tenant_admin("acme"), principal("acme", "boss", &["read:*", "write:*", "ask:*", "admin:*"])] {
        let mut check = |command: Value, expected: RejectCode| {
            assert_eq!(office.manage(&boss, &command), Err(expected), "{command}");
        };
        for tenant in ["other", "nowhere", "default"] {
            for command in [
                json!({"command":"revoke","tenant":tenant,"everybody":true}),
                json!({"command":"revoke","tenant":tenant,"user":"ada"}),
                json!({"command":"token","tenant":tenant,"user":"ada","allow":[],"ttl_s":60}),
                json!({"command":"user-add","tenant":tenant,"user":"x","password":"12345678","allow":[]}),
                json!({"command":"user-remove","tenant":tenant,"user":"ada"}),
                json!({"command":"user-password","tenant":tenant,"user":"ada","password":"12345678"}),
                json!({"command":"user-allow","tenant":tenant,"user":"ada","allow":[]}),
                json!({"command":"user-list","tenant":tenant}),
                json!({"command":"key-create","tenant":tenant,"user":"ada","allow":[]}),
                json!({"command":"key-list","tenant":tenant}),
                json!({"command":"audit","tenant":tenant}),
            ] {
                check(command, RejectCode::Forbidden);
            }
        }
        check(json!({"command":"rotate-keys"}), RejectCode::Forbidden);
        check(json!({"command":"reload"}), RejectCode::Forbidden);
        check(json!({"command":"config"}), RejectCode::Forbidden);
        // One of another tenant is as unknown as one that is nowhere.
        check(json!({"command":"key-remove","key":key_id}), RejectCode::ParameterInvalid);
        check(json!({"command":"key-remove","key":"0000000000000001"}), RejectCode::ParameterInvalid);
        check(json!({"command":"revoke","apikey":key}), RejectCode::ParameterInvalid);
        check(json!({"command":"revoke","token":token["token"]}), RejectCode::Forbidden);
        // Its id alone is taken for one of its own tenant, and does nothing to the other.
        office.manage(&boss, &json!({"command":"revoke","token":token["id"]})).expect("taken");
        assert!(office.check(text(&token, "token")).is_ok() && office.check(key).is_ok());
        let users = office.manage(&boss, &json!({"command":"user-list"})).expect("ok");
        assert_eq!(users["users"].as_array().map(Vec::len), Some(1));
        let events = office.manage(&boss, &json!({"command":"audit","limit":500})).expect("ok");
        let events = events["events"].as_array().expect("a list");
        assert!(events.len() > 30 && events.iter().all(|event| event["tenant"] == "acme"), "{events:?}");
    }
    let events = office.manage(&root, &json!({"command":"audit","limit":500})).expect("ok");
    assert!(events["events"].as_array().expect("a list").iter().any(|event| event["tenant"] == "acme"));
    let of = office.manage(&root, &json!({"command":"audit","tenant":"acme"})).expect("ok");
    assert!(of["events"].as_array().expect("a list").iter().all(|event| event["tenant"] == "acme"));
}

#[test]
fn nobody_gives_away_more_than_they_have() {
    let dir = TempDir::new();
    let mut office = Office::open(&dir, AccessConfig::default());
    let (root, boss) = (node_admin(), tenant_admin("acme"));
    let nobody = principal("acme", "ada", &["read:*"]);
    let strong =
        json!({"command":"user-add","tenant":"acme","user":"strong","password":"12345678","allow":["admin:*"]});
    office.manage(&root, &strong).expect("ok");
    let mut check = |who: &Arc<Principal>, command: Value, expected: RejectCode| {
        assert_eq!(office.manage(who, &command), Err(expected), "{command}");
    };
    check(&nobody, json!({"command":"user-list"}), RejectCode::Forbidden);
    check(&nobody, json!({"command":"audit"}), RejectCode::Forbidden);
    check(&nobody, json!({"command":"fly"}), RejectCode::RequestInvalid);
    for texts in [json!(["admin:*"]), json!(["write:*"]), json!(["read:*", "ask:*"])] {
        check(&boss, json!({"command":"token","user":"x","allow":texts,"ttl_s":60}), RejectCode::Forbidden);
        check(&boss, json!({"command":"key-create","user":"x","allow":texts}), RejectCode::Forbidden);
        let add = json!({"command":"user-add","user":"x","password":"12345678","allow":texts});
        check(&boss, add, RejectCode::Forbidden);
    }
    // Whoever sets the password of one with more rights would have them.
    let password = json!({"command":"user-password","user":"strong","password":"87654321"});
    check(&boss, password, RejectCode::Forbidden);
    check(&boss, json!({"command":"user-allow","user":"strong","allow":[]}), RejectCode::Forbidden);
    check(&boss, json!({"command":"user-remove","user":"strong"}), RejectCode::Forbidden);
    check(&boss, json!({"command":"token","user":"ai/x","allow":[],"ttl_s":60}), RejectCode::NameReserved);
}

#[test]
fn people_change_their_own_password() {
    let dir = TempDir::new();
    let mut office = Office::open(&dir, AccessConfig::default());
    let add = json!({"command":"user-add","user":"ada","password":"12345678","allow":["read:*"]});
    office.manage(&tenant_admin("acme"), &add).expect("ok");
    let ada = principal("acme", "ada", &["read:*"]);
    let change = |old: &str, user: &str| json!({"command":"user-password","user":user,"password":"87654321","old":old});
    assert_eq!(office.manage(&ada, &change("wrong", "ada")), Err(RejectCode::LoginFailed));
    assert_eq!(office.manage(&ada, &change("12345678", "bob")), Err(RejectCode::Forbidden));
    let without = json!({"command":"user-password","user":"ada","password":"87654321"});
    assert_eq!(office.manage(&ada, &without), Err(RejectCode::Forbidden));
    office.manage(&ada, &change("12345678", "ada")).expect("ok");
    assert!(office.login("acme", "ada", "87654321").is_ok());
}

#[test]
fn guessing_is_slowed_down() {
    let dir = TempDir::new();
    let mut office = Office::open(&dir, AccessConfig::default());
    let add = json!({"command":"user-add","user":"ada","password":"12345678","allow":[]});
    office.manage(&tenant_admin("acme"), &add).expect("ok");
    // One who is there and one who is not cannot be told apart.
    for user in ["ada", "nobody"] {
        for n in 0..=FREE_FAILURES_PER_USER {
            let reject = office.login("acme", user, "wrong").expect_err("wrong");
            assert_eq!(reject.code, RejectCode::LoginFailed, "{user} {n}");
            assert_eq!(reject.retry_after_ms > 0, n + 1 >= FREE_FAILURES_PER_USER, "{user} {n} {reject:?}");
            office.pass(u64::from(reject.retry_after_ms / 1_000));
        }
        let reject = office.login("acme", user, "wrong").expect_err("wrong");
        let too_soon = office.login("acme", user, "12345678").expect_err("too soon");
        assert_eq!((reject.code, too_soon.code), (RejectCode::LoginFailed, RejectCode::RateLimited));
        assert_eq!(too_soon.retry_after_ms, reject.retry_after_ms);
    }
    office.pass(30);
    office.login("acme", "ada", "12345678").expect("in again");
    office.keeper.configure(AccessConfig { login: false, ..AccessConfig::default() }).expect("valid");
    let reject = office.login("acme", "ada", "12345678").expect_err("off");
    assert!(reject.message.contains("access.login is off"), "{reject}");
}

#[test]
fn keys_rotate_and_the_local_token_stays_good() {
    let dir = TempDir::new();
    let mut office = Office::open(&dir, AccessConfig::default());
    let local = |dir: &TempDir| fs::read_to_string(dir.path().join(crate::identity::TOKEN_FILE)).expect("there");
    let first = office.keeper.local_token(claims("default", "root", &["admin:*"], 0)).expect("made");
    let root = node_admin();
    office.manage(&root, &json!({"command":"rotate-keys"})).expect("ok");
    assert!(office.check(&first).is_ok(), "what was signed before is good");
    assert_eq!(local(&dir), first);
    office.manage(&root, &json!({"command":"rotate-keys","drop_old":true})).expect("ok");
    assert_eq!(office.check(&first), Err(RejectCode::TokenInvalid));
    let second = local(&dir);
    assert!(office.check(&second).is_ok(), "made anew");
    office.manage(&root, &json!({"command":"revoke","everybody":true})).expect("ok");
    assert_eq!(office.check(&second), Err(RejectCode::TokenRevoked));
    assert!(office.check(&local(&dir)).is_ok(), "and again");
    office.pass(200 * 24 * 3600);
    assert!(office.check(&local(&dir)).is_ok());
    office.pass(200 * 24 * 3600);
    assert!(office.check(&local(&dir)).is_ok(), "a node may run for years");
}

#[test]
fn an_issuer_is_asked_when_a_key_is_new() {
    let dir = TempDir::new();
    let (old, new) = (TestKey::new("old", Algorithm::ES256), TestKey::new("new", Algorithm::RS256));
    let issuer = TestIssuer::start(&[&old]);
    let mut office = Office::open(&dir, AccessConfig { issuers: vec![issuer.config()], ..AccessConfig::default() });
    let body = json!({ "iss": issuer.url, "aud": "thalweg", "sub": "ada", "iat": NOW, "exp": NOW + 90_000 });
    let ask = |office: &mut Office, key: &TestKey| match office.handle(Wanted::Check { token: Secret(key.sign(&body)) })
    {
        Told::Checked(Ok(admission)) => Ok(admission.user),
        Told::Checked(Err(reject)) => Err((reject.code, reject.retry_after_ms > 0)),
        told => panic!("{told:?}"),
    };
    issuer.set(Mood::Error, &[]);
    let unavailable = Err((RejectCode::IssuerUnavailable, true));
    assert_eq!(ask(&mut office, &old), unavailable, "it is down");
    let asked = issuer.asked.load(Ordering::SeqCst);
    assert_eq!(ask(&mut office, &old), unavailable, "it is not asked at once again");
    assert_eq!(issuer.asked.load(Ordering::SeqCst), asked);
    issuer.set(Mood::Answers, &[&old]);
    office.pass(ISSUER_ASK_S);
    assert_eq!(ask(&mut office, &old), Ok(name("ada")));
    issuer.set(Mood::Answers, &[&old, &new]);
    assert_eq!(ask(&mut office, &new), Err((RejectCode::TokenInvalid, true)), "it was asked a moment ago");
    office.pass(ISSUER_ASK_S);
    assert_eq!(ask(&mut office, &new), Ok(name("ada")));
    // It goes down; what is known of it is good for a day.
    issuer.set(Mood::Garbage, &[]);
    office.pass(20_000);
    assert_eq!(ask(&mut office, &new), Ok(name("ada")));
    office.pass(69_000);
    assert_eq!(ask(&mut office, &new), unavailable);
    // An issuer that is no longer configured lets nobody in.
    office.keeper.configure(AccessConfig::default()).expect("valid");
    assert_eq!(ask(&mut office, &new), Err((RejectCode::TokenInvalid, false)));
}

#[test]
fn lists_come_in_pages_and_limits_hold() {
    let dir = TempDir::new();
    let mut office = Office::open(&dir, AccessConfig::default());
    let boss = tenant_admin("acme");
    let keys = LISTED_MAX + 5;
    let mut made = super::super::apikeys::ApiKeys::default();
    for _ in 0..keys {
        made.create((name("acme"), name("bot")), allow(&["read:*"]), (NOW, 0), String::new()).expect("room");
    }
    office.keeper.put_api_keys(made).expect("written");
    let (mut seen, mut after) = (0, String::new());
    loop {
        let page = office.manage(&boss, &json!({"command":"key-list","after":after})).expect("ok");
        let list = page["keys"].as_array().expect("a list");
        seen += list.len();
        if page["more"] == false {
            break;
        }
        after = text(list.last().expect("an entry"), "id").to_owned();
    }
    assert_eq!(seen, keys);
    let note = "x".repeat(super::super::limits::NOTE_BYTES_MAX + 1);
    let long = json!({"command":"key-create","user":"bot","allow":[],"note":note});
    assert_eq!(office.manage(&boss, &long), Err(RejectCode::RequestInvalid));
}

#[test]
fn every_decision_is_noted_and_no_secret_is() {
    let dir = TempDir::new();
    let mut office = Office::open(&dir, AccessConfig::default());
    let boss = tenant_admin("acme");
    let add = json!({"command":"user-add","user":"ada","password":"s3cr3t-pass","allow":["read:*"]});
    office.manage(&boss, &add).expect("ok");
    let token = office.login("acme", "ada", "s3cr3t-pass").expect("in");
    let _ = office.login("acme", "ada", "s3cr3t-wrong");
    let key = office.manage(&boss, &json!({"command":"key-create","user":"bot","allow":[]})).expect("ok");
    office.manage(&boss, &json!({"command":"revoke","token":token})).expect("ok");
    let _ = office.manage(&boss, &json!({"command":"rotate-keys"}));
    let _ = office.manage(&boss, &json!({"command":"s3cr3t-fly"}));
    office.keeper.noted(Ok(AuditEvent::new(NOW, "hello", "")));
    office.keeper.noted(Err(3));
    office.keeper.close();
    let log = fs::read_to_string(dir.path().join(AUDIT_DIRECTORY).join("audit-1.jsonl")).expect("there");
    let events: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let actions: Vec<_> = events.iter().map(|event| text(event, "action")).collect();
    let expected =
        ["user-add", "login", "login", "key-create", "revoke", "rotate-keys", "manage", "hello", "audit-lost"];
    assert_eq!(actions, expected);
    let allowed: Vec<_> = events.iter().map(|event| event["allowed"] == true).collect();
    assert_eq!(allowed, [true, true, false, true, true, false, false, true, true]);
    assert_eq!((&events[2]["code"], &events[5]["code"]), (&json!("login_failed"), &json!("forbidden")));
    assert_eq!((text(&events[0], "object"), text(&events[0], "remote")), ("acme/ada", "127.0.0.1:7"));
    for secret in ["s3cr3t", token.as_str(), text(&key, "key")] {
        assert!(!log.contains(secret), "{secret} is in {log}");
    }
}

#[test]
fn damaged_files_are_named_and_nothing_is_changed() {
    for (file, says) in [
        ("access/revoked.json", "good again"),
        ("access/users.json", "nobody can log in"),
        ("access/apikeys.json", "no API key"),
        ("access/keys.json", "new key"),
    ] {
        let dir = TempDir::new();
        drop(Office::open(&dir, AccessConfig::default()));
        let path = dir.path().join(file);
        fs::write(&path, "{\"version\":1,\"x\":").expect("written");
        let now = Now { wall_us: NOW, mono_us: 0 };
        let Err(error) = Keeper::open(dir.path(), AccessConfig::default(), now) else { panic!("{file} is damaged") };
        let error = error.to_string();
        assert!(error.contains(file) && error.contains(says) && error.contains("backup"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("there"), "{\"version\":1,\"x\":");
    }
}
