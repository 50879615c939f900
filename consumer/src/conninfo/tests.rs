//! What a connection string comes to, with an environment that the test makes up.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tokio_postgres::config::{Host as TheirHost, TargetSessionAttrs};

use super::*;

fn parse_in(text: &str, environment: &[(&str, &str)]) -> Result<ConnInfo> {
    let environment: Vec<(String, String)> = environment
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    ConnInfo::parse_with(text, &|name| {
        environment
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    })
}

fn parse(text: &str) -> ConnInfo {
    parse_in(text, &[("PGUSER", "me")]).unwrap()
}

fn refused(text: &str) -> String {
    let error = parse_in(text, &[("PGUSER", "me")]).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{text}");
    format!("{error:#}")
}

#[test]
fn what_is_left_out_comes_from_the_environment_then_from_defaults() {
    let info = parse("host=db1");
    assert_eq!(info.to_string(), "host=db1 port=5432 dbname=me user=me");
    assert_eq!(info.connect_timeout(), Some(Duration::from_secs(30)));
    let environment = [
        ("PGHOST", "db2"),
        ("PGPORT", "5433"),
        ("PGUSER", "u"),
        ("PGDATABASE", "d"),
        ("PGCONNECT_TIMEOUT", "7"),
    ];
    let info = parse_in("", &environment).unwrap();
    assert_eq!(info.to_string(), "host=db2 port=5433 dbname=d user=u");
    assert_eq!(info.connect_timeout(), Some(Duration::from_secs(7)));
    let info = parse_in("postgresql://x@db3/e?connect_timeout=0", &environment).unwrap();
    assert_eq!(info.to_string(), "host=db3 port=5433 dbname=e user=x");
    assert_eq!(info.connect_timeout(), None);
    assert_eq!(
        parse("host='' dbname='' port=1 hostaddr=127.0.0.1").to_string(),
        "host=127.0.0.1 port=1 dbname=me user=me"
    );
}

#[test]
fn several_hosts() {
    let info = parse("host=a,b,/tmp port=1,,3 target_session_attrs=read-write");
    let attempts = info.attempts();
    assert_eq!(
        attempts.iter().map(|one| one.place.as_str()).collect::<Vec<_>>(),
        ["a port 1", "b port 5432", "/tmp port 3"]
    );
    assert!(
        attempts
            .iter()
            .all(|one| one.settings.get_target_session_attrs() == TargetSessionAttrs::ReadWrite)
    );
    assert_eq!(attempts[2].settings.get_hosts(), [TheirHost::Unix("/tmp".into())]);
    assert_eq!(
        parse("host=a,b port=7").to_string(),
        "host=a,b port=7,7 dbname=me user=me"
    );
    assert!(refused("host=a,b,c port=1,2").contains("port has 2 values for 3 servers"));
    assert!(refused("host=a,b hostaddr=127.0.0.1").contains("hostaddr has 1, not 2"));
}

#[test]
fn sslmode_is_verify_full_off_this_machine_and_prefer_on_it() {
    let strength = |text: &str| {
        let attempts = parse(text).attempts();
        (attempts[0].settings.get_ssl_mode(), attempts[0].verify)
    };
    for away in [
        "host=db1",
        "host=192.0.2.1",
        "hostaddr=192.0.2.1",
        "host=localhost hostaddr=192.0.2.1",
    ] {
        assert_eq!(strength(away), (Negotiation::Require, Verify::Full), "{away}");
    }
    for here in [
        "host=localhost",
        "host=127.0.0.1",
        "host=127.1.2.3",
        "host=::1",
        "host=LocalHost",
        "host=db1 hostaddr=::1",
    ] {
        assert_eq!(strength(here), (Negotiation::Prefer, Verify::Nothing), "{here}");
    }
    assert_eq!(
        strength("host=/tmp sslmode=require"),
        (Negotiation::Disable, Verify::Nothing)
    );
    assert_eq!(
        strength("host=db1 sslmode=disable"),
        (Negotiation::Disable, Verify::Nothing)
    );
    assert_eq!(
        strength("host=db1 sslmode=require"),
        (Negotiation::Require, Verify::Nothing)
    );
    assert_eq!(
        strength("host=db1 sslmode=require sslrootcert=/x"),
        (Negotiation::Require, Verify::Authority)
    );
    assert_eq!(
        strength("host=db1 sslmode=verify-ca"),
        (Negotiation::Require, Verify::Authority)
    );
    assert_eq!(
        strength("host=localhost sslmode=verify-full"),
        (Negotiation::Require, Verify::Full)
    );
    let allow: Vec<_> = parse("host=db1 sslmode=allow")
        .attempts()
        .iter()
        .map(|one| one.settings.get_ssl_mode())
        .collect();
    assert_eq!(allow, [Negotiation::Disable, Negotiation::Require]);
    assert_eq!(
        parse_in("host=db1", &[("PGUSER", "me"), ("PGSSLMODE", "disable")])
            .unwrap()
            .sslmode,
        Some(SslMode::Disable)
    );
    assert!(refused("host=db1 sslmode=full").contains("verify-ca"));
}

#[test]
fn odd_passwords_and_names_arrive_as_they_are_and_are_not_shown() {
    for odd in [
        "p%&?@/:#",
        "it's",
        "back\\slash",
        "with space",
        "\"quoted\"",
        "größe€",
        "a=b",
        "'",
        "\\",
        "%41",
    ] {
        let keyword = odd.replace('\\', "\\\\").replace('\'', "\\'");
        let percent: String = odd.bytes().map(|byte| format!("%{byte:02X}")).collect();
        for text in [
            format!("host=h user='{keyword}' dbname='{keyword}' password='{keyword}'"),
            format!("postgresql://{percent}:{percent}@h/{percent}"),
        ] {
            let info = parse(&text);
            let settings = &info.attempts()[0].settings;
            assert_eq!(settings.get_password(), Some(odd.as_bytes()), "{text}");
            assert_eq!(
                (settings.get_user(), settings.get_dbname()),
                (Some(odd), Some(odd)),
                "{text}"
            );
        }
    }
    let info = parse("host=h user=u password=hunter2");
    for shown in [
        info.to_string(),
        format!("{info:?}"),
        format!("{:?}", info.attempts()[0].settings),
    ] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    assert_eq!(
        parse("host=h user='a b' dbname='c\\'d'").to_string(),
        r"host=h port=5432 dbname='c\'d' user='a b'"
    );
}

#[test]
fn a_wrong_string_is_refused_without_showing_a_password() {
    for text in [
        "host=h password=hunter2 sslmode=hunter2",
        "host=h password=hunter2 port=hunter2",
        "host=h password=a hunter2=b",
        "host=h password=a hunter",
        "host=h password=hunter2 hostaddr=hunter2",
        "host=h password=hunter2 connect_timeout=hunter2",
        "host=h password=hunter2 keepalives_idle=hunter2",
        "host=h password=hunter2 target_session_attrs=hunter2",
    ] {
        assert!(!refused(text).contains("hunter"), "{}", refused(text));
    }
    assert!(refused("host=h sslmod=require").contains("\"sslmod\""));
    assert!(refused("host=h port=0").contains("from 1 to 65535"));
    assert!(refused("host=h sslcert=/x").contains("sslkey"));
}

#[test]
fn the_password_file_is_used_when_nobody_else_can_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgpass");
    fs::write(&file, "h:5432:d:u:from file\nlocalhost:*:*:*:socket\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let environment = [("PGPASSFILE", file.to_str().unwrap()), ("PGUSER", "u")];
    let password = |text: &str| {
        let info = parse_in(text, &environment).unwrap();
        info.attempts()[0]
            .settings
            .get_password()
            .map(|password| String::from_utf8(password.to_vec()).unwrap())
    };
    assert_eq!(password("host=h dbname=d").as_deref(), Some("from file"));
    assert_eq!(password("host=h dbname=d password=given").as_deref(), Some("given"));
    assert_eq!(password("host=h dbname=e"), None);
    assert_eq!(password("host=/var/run/postgresql").as_deref(), Some("socket"));
    assert_eq!(password("host=h dbname=d passfile=/nowhere"), None);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(password("host=h dbname=d"), None);
}

#[test]
fn a_service_says_what_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let (own, of_all) = (folder.path().join("own"), folder.path().join("pg_service.conf"));
    fs::write(
        &own,
        "# comment\nport=1\n\n[other]\nhost=x\n[ shop ]\nhost=y\n[shop]\n  host=db2  \r\n#port=9\nport=5433\nport=7\ndbname=a = 'b' # c\nuser=\n\
         [shop]\nuser=second\n[bad]\nhost\n[nested]\nservice=shop\n[unknown]\npasword=hunter2\n[wrong]\nport=hunter2\n",
    )
    .unwrap();
    fs::write(&of_all, "[shop]\nhost=z\n[all]\nhost=all\n").unwrap();
    let (own, folder) = (own.to_str().unwrap(), folder.path().to_str().unwrap());
    let environment = [
        ("PGSERVICEFILE", own),
        ("PGSYSCONFDIR", folder),
        ("PGUSER", "me"),
        ("PGPORT", "99"),
        ("PGHOST", "env"),
    ];
    let shown = |text: &str| parse_in(text, &environment).unwrap().to_string();
    assert_eq!(
        shown("service=shop"),
        "host=db2 port=5433 dbname='a = \\'b\\' # c' user=me"
    );
    assert_eq!(
        shown("postgresql://u@h/d?service=shop"),
        "host=h port=5433 dbname=d user=u"
    );
    assert_eq!(shown("service=all dbname=d"), "host=all port=99 dbname=d user=me");
    assert_eq!(shown("service='' dbname=d"), "host=env port=99 dbname=d user=me");
    let with = |more: &[(&'static str, &'static str)]| {
        let mut all = environment.to_vec();
        all.extend_from_slice(more);
        parse_in("dbname=d", &all).unwrap().to_string()
    };
    assert_eq!(with(&[("PGSERVICE", "shop")]), "host=db2 port=5433 dbname=d user=me");
    let refused = |text: &str, environment: &[(&str, &str)]| {
        let error = parse_in(text, environment).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{text}");
        let said = format!("{error:#}");
        assert!(!said.contains("hunter2"), "{said}");
        said
    };
    for (service, wanted) in [
        (
            "nobody",
            format!("service \"nobody\" is not in {own} and {folder}/pg_service.conf"),
        ),
        ("bad", format!("service \"bad\" in {own}: line 18 is not keyword=value")),
        (
            "nested",
            format!("service \"nested\" in {own}: line 20 names another service"),
        ),
        ("unknown", format!("service \"unknown\" in {own}: line 22: \"pasword\"")),
        ("wrong", "port of the connection string".to_owned()),
    ] {
        let said = refused(&format!("service={service}"), &environment);
        assert!(said.contains(&wanted), "{said}");
    }
    let said = refused("service=shop", &[("PGSERVICEFILE", "/nowhere/file"), ("PGUSER", "me")]);
    assert!(said.contains("could not read service file /nowhere/file"), "{said}");
    // The user's own need not be there.
    let at_home = [("HOME", "/nowhere"), ("PGSYSCONFDIR", folder), ("PGUSER", "me")];
    assert_eq!(
        parse_in("service=all", &at_home).unwrap().to_string(),
        "host=all port=5432 dbname=me user=me"
    );
    let said = refused(
        "service=all",
        &[("HOME", "/nowhere"), ("PGSYSCONFDIR", "/nowhere"), ("PGUSER", "me")],
    );
    assert!(said.contains("there is no service file"), "{said}");
}

#[test]
fn the_default_consumer_tells_subscribers_apart() {
    let name = |text: &str| parse(text).default_consumer();
    assert_eq!(name("host=db2.example.org dbname=app"), "replay_db2_example_org_app");
    assert_eq!(name("host=127.0.0.1 port=5433 dbname=app"), "replay_127_0_0_1_5433_app");
    assert_eq!(name("host=/tmp dbname='größe x'"), "replay_local_größe_x");
    assert_ne!(name("host=a dbname=app"), name("host=b dbname=app"));
}

#[test]
fn what_tokio_postgres_understands_is_passed_on() {
    let info =
        parse("host=h options='-c geqo=off' keepalives_idle=11 keepalives_count=3 tcp_user_timeout=1500 keepalives=0");
    let settings = &info.attempts()[0].settings;
    assert_eq!(settings.get_options(), Some("-c geqo=off"));
    assert_eq!(settings.get_keepalives_idle(), Duration::from_secs(11));
    assert_eq!(settings.get_keepalives_retries(), Some(3));
    assert_eq!(settings.get_tcp_user_timeout(), Some(&Duration::from_millis(1500)));
    assert!(!settings.get_keepalives());
}

proptest::proptest! {
    #[test]
    fn no_text_ends_the_process(text in "(postgres(ql)?://)?\\PC*") {
        let _ = parse_in(&text, &[("PGUSER", "me")]);
    }

    #[test]
    fn nor_does_a_text_of_the_characters_that_mean_something(text in "(postgresql://)?[a-b/:@?&=%\\[\\],'\\\\ 0-1]*") {
        let _ = parse_in(&text, &[("PGUSER", "me")]);
    }

    #[test]
    fn what_is_quoted_is_read_back(password in "[^\0]+", dbname in "[^\0]+") {
        let text = format!("host=h password={} dbname={}", quoted(&password), quoted(&dbname));
        let settings = &parse(&text).attempts()[0].settings;
        proptest::prop_assert_eq!(settings.get_password(), Some(password.as_bytes()));
        proptest::prop_assert_eq!(settings.get_dbname(), Some(dbname.as_str()));
    }

    #[test]
    fn what_is_shown_is_a_connection_string_for_the_same_place(user in "[^\0]+", port in 1..u16::MAX) {
        let info = parse(&format!("host=h port={port} user={}", quoted(&user)));
        proptest::prop_assert_eq!(parse(&info.to_string()).to_string(), info.to_string());
    }
}
