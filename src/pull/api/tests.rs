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
    tokio::select! {
        biased;
        _ = &mut answered => panic!("the file was given up, or its reader has held this up"),
        () = async {
            until("the key is refused", || asked.load(Ordering::SeqCst) == 1).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        } => {}
    }
    let written = tokio::task::spawn_blocking(move || std::fs::write(pipe, "another secret"));
    assert!(answered.await.is_ok());
    written.await.unwrap().unwrap();
    assert_ne!(server.seen()[0].header("authorization"), server.seen()[1].header("authorization"));
}
