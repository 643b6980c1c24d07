use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::pin::pin;

use super::*;
use crate::batch::LogType;
use crate::testing::{Server, answer, until};

#[tokio::test]
async fn a_keys_file_that_keeps_its_reader_waiting_holds_up_nothing_else() {
    let asked = Arc::new(AtomicI64::new(0));
    let count = asked.clone();
    let server = Server::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => answer(401, r#"{"message":"Unauthorized"}"#),
        _ => answer(200, "[]"),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("secret");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let pull = config::Pull {
        key_id: "id".to_owned(),
        key_secret: "secret".into(),
        key_files: config::KeyFiles { id: None, secret: Some(pipe.clone()) },
        types: vec![LogType::Audits],
        from: None,
        interval: Duration::from_secs(30),
        organization_ids: Vec::new(),
        api_url: server.url(),
    };
    let api = Api::new(&pull, &Network::new(&config::Network::default()).unwrap()).unwrap();
    let mut answered = pin!(api.get(Endpoint::Organizations, &["organizations"], &[]));
    // As long as nobody reads a pipe, it can't be opened for writing without waiting.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let open = || std::fs::OpenOptions::new().write(true).custom_flags(flags).open(&pipe);
    let mut writer = None;
    tokio::select! {
        biased;
        _ = &mut answered => panic!("the file was given up"),
        () = until("the refused key's file is being read", || {
            writer = open().ok();
            writer.is_some()
        }) => {}
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    writer.unwrap().write_all(b"another secret").unwrap();
    assert!(answered.await.is_ok());
    assert_ne!(server.seen()[0].header("authorization"), server.seen()[1].header("authorization"));
}
