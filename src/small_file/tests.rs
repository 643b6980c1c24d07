use std::path::Path;

use super::*;

fn refusal(path: &Path) -> String {
    read(path).unwrap_err().to_string()
}

fn pipe_in(folder: &Path) -> std::path::PathBuf {
    let pipe = folder.join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    pipe
}

#[test]
fn a_device_and_a_directory_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(refusal(Path::new("/dev/zero")), "it is a device, not a file");
    assert_eq!(refusal(folder.path()), "it is a folder, as Docker makes one where the file to mount is missing");
}

#[test]
fn a_pipe_is_read_to_its_end_and_one_that_nobody_writes_to_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = pipe_in(folder.path());
    assert_eq!(refusal(&pipe), "nobody writes to the pipe for 5s");
    let long = vec![b'x'; 300_000];
    std::thread::scope(|scope| {
        scope.spawn(|| std::fs::write(&pipe, &long).unwrap());
        assert_eq!(*read(&pipe).unwrap(), long);
    });
}

#[test]
fn a_file_of_a_mebibyte_is_read_and_a_byte_more_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, vec![b'x'; MAX_BYTES]).unwrap();
    assert_eq!(read(&path).unwrap().len(), MAX_BYTES);
    std::fs::write(&path, vec![b'x'; MAX_BYTES + 1]).unwrap();
    assert_eq!(refusal(&path), "it has more than 1048576 bytes");
}

#[test]
fn bytes_that_are_no_text_are_refused_where_text_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, [0xff, b'x']).unwrap();
    assert_eq!(read_text(&path).unwrap_err().to_string(), "it is not UTF-8");
}

#[test]
fn a_byte_order_mark_is_no_part_of_what_a_file_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for (written, held) in [("\u{feff}value", "value"), ("\u{feff}", ""), ("value\u{feff}", "value\u{feff}")] {
        std::fs::write(&path, written).unwrap();
        assert_eq!(*read_text(&path).unwrap(), held);
    }
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&path, format!("\u{feff}{}", made.cert.pem())).unwrap();
    assert_eq!(crate::pem::all::<rustls::pki_types::CertificateDer<'_>>(&path).unwrap().len(), 1);
}
