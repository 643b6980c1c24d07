//! A network that resets, stalls, cuts and trickles between the daemon and S3.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::{AUDITS, Books, DEPLOYMENTS, Setup, wait_until};
use crate::local_aws::LocalAws;
use crate::local_env0::deployments::Environment;
use crate::local_env0::{Fault, LocalEnv0};

/// What the proxy does to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    Fair,
    /// Closes at once.
    Refuse,
    /// Passes so many bytes to S3, then closes both sides.
    CutAfter(usize),
    /// Passes everything to S3 and nothing back, then closes.
    NoWayBack,
    /// Accepts and never moves a byte.
    Stall,
    /// Passes so many bytes a second to S3.
    Slow(usize),
}

/// Between a daemon and S3.
pub(crate) struct Proxy {
    address: SocketAddr,
    weather: Arc<Mutex<Weather>>,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) fn start(aws: &LocalAws, weather: Weather) -> Proxy {
        let target: SocketAddr = aws.s3.url().strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (weather, connections) = (Arc::new(Mutex::new(weather)), Arc::new(AtomicUsize::new(0)));
        let (now, count) = (weather.clone(), connections.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let weather = *now.lock().unwrap();
                std::thread::spawn(move || drop(carry(&client, target, weather)));
            }
        });
        Proxy { address, weather, connections }
    }

    pub(crate) fn set(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }

    fn wait_for_connections(&self, count: usize) {
        wait_until("the daemon has tried again", || self.connections.load(Ordering::SeqCst) >= count);
    }

    /// A daemon's configuration with S3 behind the proxy.
    pub(crate) fn setup(&self, aws: &LocalAws) -> Setup {
        Setup::new(aws).set("AWS_ENDPOINT_URL_S3", format!("http://{}", self.address))
    }
}

fn carry(client: &TcpStream, target: SocketAddr, weather: Weather) -> std::io::Result<()> {
    match weather {
        Weather::Refuse => return client.shutdown(Shutdown::Both),
        Weather::Stall => {
            // Until the daemon gives up; it never gets a byte.
            std::io::copy(&mut &*client, &mut std::io::sink())?;
            return Ok(());
        }
        _ => {}
    }
    let server = TcpStream::connect(target)?;
    let (to_client, from_server) = (client.try_clone()?, server.try_clone()?);
    let back = std::thread::spawn(move || {
        let mut sink = std::io::sink();
        let answers: &mut dyn Write = if weather == Weather::NoWayBack { &mut sink } else { &mut &to_client };
        let mut buffer = [0; 4096];
        while let Ok(read) = (&from_server).read(&mut buffer)
            && read > 0
            && answers.write_all(&buffer[..read]).is_ok()
            // The answer was there, and is lost.
            && weather != Weather::NoWayBack
        {}
        to_client.shutdown(Shutdown::Both)
    });
    let limit = if let Weather::CutAfter(bytes) = weather { bytes as u64 } else { u64::MAX };
    let copied = match weather {
        Weather::Slow(bytes_per_second) => trickle(client, &server, bytes_per_second),
        _ => std::io::copy(&mut client.take(limit), &mut &server),
    };
    if matches!(weather, Weather::CutAfter(_)) {
        client.shutdown(Shutdown::Both)?;
    }
    server.shutdown(Shutdown::Both)?;
    drop(back.join());
    copied.map(drop)
}

/// Copies until the end, `bytes_per_second` at most; the bytes copied.
fn trickle(mut from: &TcpStream, mut to: &TcpStream, bytes_per_second: usize) -> std::io::Result<u64> {
    const STEPS_PER_SECOND: usize = 20;
    let mut buffer = vec![0; bytes_per_second / STEPS_PER_SECOND];
    let mut copied = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(copied),
            read => to.write_all(&buffer[..read])?,
        }
        copied += buffer.len() as u64;
        std::thread::sleep(Duration::from_secs(1) / STEPS_PER_SECOND as u32);
    }
}

#[test]
fn a_slow_uplink_still_drains_what_comes_in() {
    for kibibytes_per_second in [64, 1024] {
        let aws = LocalAws::start();
        let proxy = Proxy::start(&aws, Weather::Slow(kibibytes_per_second << 10));
        let setup = proxy.setup(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "64KiB");
        let (daemon, books) = (setup.start(), Books::default());
        // 600 KiB: some seconds on the slowest of them.
        for path in [DEPLOYMENTS, AUDITS].repeat(4) {
            let ids = books.ids(800);
            assert_eq!(daemon.post(path, Books::body(&ids)).accepted(), 800);
            books.acknowledge(ids);
        }
        books.balance(&aws, &setup);
        assert_eq!(aws.s3.put_count(), aws.s3.objects().len(), "nothing was sent twice");
    }
}

#[test]
fn a_network_that_breaks_every_connection_costs_no_event_and_doubles_none() {
    for weather in
        [Weather::Refuse, Weather::CutAfter(0), Weather::CutAfter(100), Weather::CutAfter(3000), Weather::NoWayBack]
    {
        let aws = LocalAws::start();
        let proxy = Proxy::start(&aws, weather);
        let setup = proxy.setup(&aws);
        let (daemon, books) = (setup.start(), Books::default());
        for path in [DEPLOYMENTS, AUDITS] {
            let ids = books.ids(40);
            assert_eq!(daemon.post(path, Books::body(&ids)).accepted(), 40, "{weather:?}");
            books.acknowledge(ids);
        }
        proxy.wait_for_connections(4);
        proxy.set(Weather::Fair);
        books.balance(&aws, &setup);
        assert_eq!(aws.s3.objects().len(), 2, "{weather:?}");
    }
}

#[test]
fn a_connection_that_stalls_stops_neither_ingest_nor_a_restart() {
    let aws = LocalAws::start();
    let proxy = Proxy::start(&aws, Weather::Stall);
    let setup = proxy.setup(&aws).set("ENV0_S3_LOG_SHUTDOWN_GRACE", "4s");
    let (mut daemon, books) = (setup.start(), Books::default());
    for _ in 0..3 {
        let ids = books.ids(10);
        assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 10);
        books.acknowledge(ids);
    }
    proxy.wait_for_connections(1);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(aws.s3.objects().len(), 0);
    proxy.set(Weather::Fair);
    let _daemon = setup.start();
    books.balance(&aws, &setup);
}

/// Answers each connection with 103 without an end, for as long as it is read.
fn hinting() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                // What comes before a request is sent breaks the connection.
                let _ = client.read(&mut [0; 4096]);
                let hints = b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n".repeat(500);
                while client.write_all(&hints).is_ok() {}
            });
        }
    });
    url
}

/// The processor time of each of a process's threads of this name, in clock ticks, and its niceness.
fn threads(process_id: u32, name: &str) -> Vec<(u64, i64)> {
    let tasks = std::fs::read_dir(format!("/proc/{process_id}/task")).unwrap().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    let named = stats.filter_map(|stat| {
        let (before, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<i64> = fields.split(' ').skip(1).filter_map(|field| field.trim().parse().ok()).collect();
        before.ends_with(&format!("({name}")).then(|| ((fields[10] + fields[11]).unsigned_abs(), fields[15]))
    });
    named.collect()
}

#[test]
fn informational_answers_without_an_end_keep_one_considerate_thread_busy() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws)
        .set("ENV0_API_KEY_ID", "anything")
        .set("ENV0_API_KEY_SECRET", "anything-secret")
        .set("ENV0_S3_LOG_PULL_ORGANIZATION_ID", "11111111-2222-3333-4444-555555555555")
        .set("ENV0_S3_LOG_API_URL", hinting());
    let daemon = setup.start();
    let of_threads = |name| threads(daemon.process_id(), name);
    let busy = || of_threads("pull").iter().map(|(ticks, _)| ticks).sum::<u64>();
    wait_until("the thread of foreign answers is busy", || busy() > 200);
    assert!(of_threads("pull").iter().all(|(_, niceness)| *niceness > 0), "{:?}", of_threads("pull"));
    // Both threads that take events together, beside the start of the daemon.
    let workers = of_threads("tokio-rt-worker").iter().map(|(ticks, _)| ticks).sum::<u64>();
    assert!(workers < 100, "{workers} of {}", busy());
}

#[test]
fn large_and_odd_answers_of_env0_are_read_on_a_considerate_thread() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![Environment::new("env-1")];
    // Each control character has to be escaped.
    let record = format!("{{\"id\":\"e\",\"name\":\"{}\"}}", "\u{1}".repeat(60_000));
    let list = format!("[{}]", vec![record; 80].join(","));
    env0.break_down("/environments", Fault::Bytes(list.into_bytes().leak()));
    let setup = env0.environment().into_iter().fold(Setup::new(&aws), |setup, (name, value)| setup.set(name, value));
    let setup = setup.set("ENV0_S3_LOG_PULL", "env0-deployments").set("ENV0_S3_LOG_PULL_INTERVAL", "5s");
    let daemon = setup.start();
    let of_threads = |name| threads(daemon.process_id(), name).iter().map(|(ticks, _)| ticks).sum::<u64>();
    wait_until("the thread of the pull is busy", || of_threads("pull") > 100);
    let workers = of_threads("tokio-rt-worker");
    assert!(workers < 100, "{workers} of {}", of_threads("pull"));
}
