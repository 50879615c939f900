//! Connecting, with the real binary to real servers: odd names and passwords, where a password comes from, the
//! strengths of sslmode, time limits, several hosts. `consumer status` with the same database at both ends stands for
//! "connects": it exits 0 if it could.
#![allow(missing_docs, unreachable_pub, dead_code, reason = "a test binary has no interface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cluster;

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;

use cluster::Cluster;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

static PLAIN: LazyLock<Cluster> = LazyLock::new(|| Cluster::start("conninfo", &["--no-preload"]));

/// Exit code, and both outputs together.
fn connects(conninfo: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consumer"));
    command
        .args(["-vv", "status", "--provider", conninfo, "--subscriber", conninfo])
        .stdin(Stdio::null());
    for name in [
        "PGHOST",
        "PGPORT",
        "PGUSER",
        "PGPASSWORD",
        "PGDATABASE",
        "PGPASSFILE",
        "PGSSLMODE",
        "PGSSLROOTCERT",
    ] {
        command.env_remove(name);
    }
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[track_caller]
fn assert_connects(conninfo: &str, environment: &[(&str, &str)]) {
    let (code, text) = connects(conninfo, environment);
    assert_eq!(code, Some(0), "{conninfo}: {text}");
}

#[track_caller]
fn assert_fails(conninfo: &str, environment: &[(&str, &str)], reason: &str) {
    let (code, text) = connects(conninfo, environment);
    assert_eq!(code, Some(1), "{conninfo}: {text}");
    assert!(text.contains(reason), "{conninfo}: {text}");
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn percent(value: &str) -> String {
    value.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

#[tokio::test]
async fn odd_names_and_passwords_get_in_by_every_way_and_never_out() {
    let admin = PLAIN.connect("postgres").await;
    let port = PLAIN.port();
    let folder = tempfile::tempdir().unwrap();
    for (number, odd) in [
        "p%&?@/:#=",
        "it's \"quoted\"",
        "back\\slash",
        "größe €",
        "a  b",
        "x'; drop",
        "%41",
    ]
    .iter()
    .enumerate()
    {
        let identifier = format!("\"{}\"", odd.replace('"', "\"\""));
        let password = format!("canary {odd}");
        let literal = format!("E'{}'", password.replace('\\', "\\\\").replace('\'', "\\'"));
        admin
            .run(&format!("create role {identifier} login password {literal}"))
            .await;
        admin
            .run(&format!("create database {identifier} owner {identifier}"))
            .await;

        let named = format!("host=127.0.0.1 port={port} user={} dbname={}", quoted(odd), quoted(odd));
        assert_connects(&format!("{named} password={}", quoted(&password)), &[]);
        let (name, secret) = (percent(odd), percent(&password));
        assert_connects(&format!("postgresql://{name}:{secret}@127.0.0.1:{port}/{name}"), &[]);
        assert_connects(
            &format!("postgresql:///?host=127.0.0.1&port={port}&user={name}&dbname={name}&password={secret}"),
            &[],
        );
        assert_connects(&named, &[("PGPASSWORD", &password)]);
        let place = [
            ("PGHOST", "127.0.0.1"),
            ("PGPORT", &port.to_string()),
            ("PGUSER", odd),
            ("PGDATABASE", odd),
        ];
        assert_connects("", &[&place[..], &[("PGPASSWORD", &password)]].concat());

        let file = folder.path().join(number.to_string());
        let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
        fs::write(
            &file,
            format!(
                "127.0.0.1:{port}:{}:{}:{}\n",
                escape(odd),
                escape(odd),
                escape(&password)
            ),
        )
        .unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let path = file.to_str().unwrap();
        assert_connects(&named, &[("PGPASSFILE", path)]);
        assert_connects(&format!("{named} passfile={}", quoted(path)), &[]);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_fails(&named, &[("PGPASSFILE", path)], "password missing");

        let wrong = connects(&format!("{named} password={}", quoted(&format!("{password}x"))), &[]);
        assert_eq!(wrong.0, Some(1), "{}", wrong.1);
        assert!(
            wrong.1.contains("SQLSTATE 28P01") && wrong.1.contains("HINT: Check the password"),
            "{}",
            wrong.1
        );
        assert!(!wrong.1.contains("canary"), "{}", wrong.1);
    }
}

#[test]
fn what_the_server_refuses_is_told_with_its_sqlstate() {
    let conninfo = PLAIN
        .conninfo("no such database")
        .replace("dbname=no such database", "dbname='no such database'");
    assert_fails(
        &conninfo,
        &[],
        "database \"no such database\" does not exist (SQLSTATE 3D000)",
    );
    assert_fails(&PLAIN.conninfo_as("postgres", "nobody", "x"), &[], "SQLSTATE 28P01");
}

#[test]
fn several_hosts_are_tried_in_order_until_one_will_do() {
    let (port, rest) = (PLAIN.port(), PLAIN.conninfo("postgres"));
    let rest = rest.split_once(" user=").unwrap().1;
    assert_connects(&format!("host=127.0.0.1,127.0.0.1 port=1,{port} user={rest}"), &[]);
    assert_connects(
        &format!("host=127.0.0.1,127.0.0.1 port=1,{port} target_session_attrs=read-write user={rest}"),
        &[],
    );
    assert_fails(
        &format!("host=127.0.0.1 port={port} target_session_attrs=read-only user={rest}"),
        &[],
        "not read only",
    );
    assert_fails(&format!("host=127.0.0.1,127.0.0.1 port=1,2 user={rest}"), &[], "port 2");
    // The one that somebody can do something about is told, whichever comes first.
    let wrong = format!("host=127.0.0.1,127.0.0.1 port={port},1 user=postgres password=wrong dbname=postgres");
    assert_fails(&wrong, &[], "SQLSTATE 28P01");
}

#[test]
fn the_time_limit_holds_for_a_server_that_accepts_and_says_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    for sslmode in ["disable", "prefer", "require"] {
        let conninfo = format!("host=127.0.0.1 port={port} user=u connect_timeout=1 sslmode={sslmode}");
        assert_fails(&conninfo, &[], "no answer within 1 seconds");
    }
}

/// An authority, and servers' certificates.
struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    fn make() -> Self {
        // Beside the clusters, where the server may read whoever it runs as.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(
            folder.path().join("authority.pem"),
            authority.self_signed(&key).unwrap().pem(),
        )
        .unwrap();
        let issuer = Issuer::new(authority, key);
        let made = Self { folder };
        for (name, hosts) in [
            ("good", &["localhost", "127.0.0.1"][..]),
            ("other", &["db.example.org"]),
        ] {
            let key = KeyPair::generate().unwrap();
            let certificate =
                CertificateParams::new(hosts.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
            made.store(name, &certificate.signed_by(&key, &issuer).unwrap().pem(), &key);
        }
        let key = KeyPair::generate().unwrap();
        let mut own = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        made.store("self", &own.self_signed(&key).unwrap().pem(), &key);
        made
    }

    fn store(&self, name: &str, certificate: &str, key: &KeyPair) {
        fs::write(self.path(&format!("{name}.pem")), certificate).unwrap();
        let file = self.path(&format!("{name}.key"));
        fs::write(&file, key.serialize_pem()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn server(&self, name: &str) -> Cluster {
        let option = |setting: &str, file: &Path| format!("{setting}={}", file.display());
        let certificate = option("ssl_cert_file", &self.path(&format!("{name}.pem")));
        let key = option("ssl_key_file", &self.path(&format!("{name}.key")));
        Cluster::start(
            &format!("tls-{name}"),
            &["--no-preload", "-o", "ssl=on", "-o", &certificate, "-o", &key],
        )
    }
}

#[test]
fn sslmode_checks_as_much_as_it_says() {
    let certificates = Certificates::make();
    let root = |name: &str| format!("sslrootcert={}", certificates.path(name).display());
    let (authority, itself) = (root("authority.pem"), root("self.pem"));
    let [good, other, own] = ["good", "other", "self"].map(|name| certificates.server(name));
    let to = |server: &Cluster, host: &str, rest: &str| {
        let port = server.port();
        format!("host={host} hostaddr=127.0.0.1 port={port} user=postgres dbname=postgres {rest}")
    };
    // The password file knows the server as 127.0.0.1, so the password is taken from there into the environment.
    let password = |server: &Cluster| {
        let conninfo = server.conninfo("postgres");
        let file = conninfo.split_once("passfile=").unwrap().1.to_owned();
        fs::read_to_string(file)
            .unwrap()
            .trim()
            .rsplit(':')
            .next()
            .unwrap()
            .to_owned()
    };
    for (server, host, mode, reason) in [
        (&good, "localhost", "sslmode=disable".to_owned(), ""),
        (&good, "localhost", "sslmode=require".to_owned(), ""),
        (
            &good,
            "localhost",
            "sslmode=require channel_binding=require".to_owned(),
            "",
        ),
        (&good, "localhost", format!("sslmode=verify-ca {authority}"), ""),
        (&good, "localhost", format!("sslmode=verify-full {authority}"), ""),
        (
            &good,
            "localhost",
            format!("sslmode=verify-full {itself}"),
            "invalid peer certificate",
        ),
        (
            &good,
            "localhost",
            "sslmode=verify-full sslrootcert=system".to_owned(),
            "UnknownIssuer",
        ),
        (
            &good,
            "localhost",
            format!("sslmode=require {itself}"),
            "invalid peer certificate",
        ),
        (
            &good,
            "elsewhere.example.org",
            format!("sslmode=verify-full {authority}"),
            "not valid for name",
        ),
        (
            &good,
            "elsewhere.example.org",
            format!("sslmode=verify-ca {authority}"),
            "",
        ),
        (&other, "db.example.org", format!("sslmode=verify-full {authority}"), ""),
        (
            &other,
            "localhost",
            format!("sslmode=verify-full {authority}"),
            "not valid for name",
        ),
        (&own, "localhost", format!("sslmode=verify-full {itself}"), ""),
        (
            &own,
            "db.example.org",
            format!("sslmode=verify-full {itself}"),
            "not valid for name",
        ),
        (
            &own,
            "localhost",
            format!("sslmode=verify-ca {authority}"),
            "invalid peer certificate",
        ),
        (
            &*PLAIN,
            "localhost",
            format!("sslmode=verify-full {authority}"),
            "server does not support TLS",
        ),
        (
            &*PLAIN,
            "localhost",
            "sslmode=require".to_owned(),
            "server does not support TLS",
        ),
        (&*PLAIN, "localhost", "sslmode=prefer".to_owned(), ""),
        (&*PLAIN, "localhost", "sslmode=allow".to_owned(), ""),
    ] {
        let conninfo = to(server, host, &mode);
        let password = password(server);
        let environment = [("PGPASSWORD", password.as_str())];
        if reason.is_empty() {
            assert_connects(&conninfo, &environment);
        } else {
            assert_fails(&conninfo, &environment, reason);
        }
    }
}

/// Sessions of the server that no transaction has, the one that was given back last at the back.
type Idle = Arc<Mutex<VecDeque<TcpStream>>>;

/// A pooler that hands out sessions of the server by transaction. A client logs in through it, so that it need not know a password, and
/// leaves the session for all.
fn pooler(server: u16) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let idle = Idle::default();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, idle) = (client.unwrap(), Arc::clone(&idle));
            // Ends with an error when its client or the server goes.
            thread::spawn(move || serve(client, server, &idle));
        }
    });
    port
}

fn serve(mut client: TcpStream, port: u16, idle: &Idle) -> io::Result<()> {
    const SSL_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();
    let mut startup = packet(&mut client, 0)?;
    if startup[4..] == SSL_REQUEST {
        client.write_all(b"N")?;
        startup = packet(&mut client, 0)?;
    }
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    server.write_all(&startup)?;
    loop {
        let answer = packet(&mut server, 1)?;
        client.write_all(&answer)?;
        let asks = answer[0] == b'R' && matches!(answer[8], 3 | 5 | 10 | 11);
        if asks {
            server.write_all(&packet(&mut client, 1)?)?;
        } else if answer[0] == b'Z' {
            break;
        }
    }
    idle.lock().unwrap().push_front(server);
    let mut held = None;
    loop {
        let request = packet(&mut client, 1)?;
        let mut server = held.take().or_else(|| idle.lock().unwrap().pop_back()).unwrap();
        server.write_all(&request)?;
        // What belongs to the request's end is still to come from the client.
        let mut in_transaction = true;
        if matches!(request[0], b'Q' | b'S') {
            let mut answer = packet(&mut server, 1)?;
            while answer[0] != b'Z' {
                client.write_all(&answer)?;
                answer = packet(&mut server, 1)?;
            }
            client.write_all(&answer)?;
            in_transaction = answer[5] != b'I';
        }
        if in_transaction {
            held = Some(server);
        } else {
            idle.lock().unwrap().push_back(server);
        }
    }
}

/// A message, whose length comes after so many bytes.
fn packet(from: &mut TcpStream, before: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; before + 4];
    from.read_exact(&mut bytes)?;
    let length = u32::from_be_bytes(bytes[before..].try_into().unwrap()) as usize;
    bytes.resize(before + length, 0);
    from.read_exact(&mut bytes[before + 4..])?;
    Ok(bytes)
}

/// Else what replay sets in its sessions would stay in those that applications get next.
#[test]
fn a_pooler_that_gives_each_transaction_another_session_is_refused() {
    let conninfo = |port| PLAIN.with_password(&format!("host=127.0.0.1 port={port} user=postgres dbname=postgres"));
    assert_connects(&conninfo(PLAIN.port()), &[]);
    let pooled = conninfo(pooler(PLAIN.port()));
    // Again with sessions that are there already.
    for _ in 0..3 {
        assert_fails(
            &pooled,
            &[],
            "a connection pooler that gives each transaction another session",
        );
    }
}
