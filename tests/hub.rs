//! Loading by hub id, against a server on this machine: the cache, the endpoint and offline mode as the hub's own
//! variables set them. One test, because environment variables belong to the whole process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::fixture;
use headscope::model::Model;

/// Serves `/owner/NAME/resolve/main/FILE` from the fixtures, as the hub does: a redirect-free answer with an ETag and a
/// commit, whole or by range.
fn serve(mut stream: TcpStream, served: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut line, mut range) = (String::new(), None);
    reader.read_line(&mut line).unwrap();
    let path = line.split_whitespace().nth(1).unwrap_or("/").to_owned();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).unwrap() == 0 || header == "\r\n" {
            break;
        }
        if let Some(value) = header.to_lowercase().strip_prefix("range: bytes=") {
            let (from, to) = value.trim().split_once('-').unwrap();
            range = Some((from.parse::<usize>().unwrap(), to.parse::<usize>().unwrap_or(usize::MAX)));
        }
    }
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let body = match parts.as_slice() {
        ["owner", "evil", "resolve", "main", "model.safetensors.index.json"] => {
            Some(br#"{"weight_map": {"a": "../../../../evil/planted"}}"#.to_vec())
        }
        ["owner", "evil", "resolve", "main", "config.json"] => {
            std::fs::read(fixture("tiny-gpt2").join("config.json")).ok()
        }
        // This server fails at one file, whose address happens to hold a 404.
        ["owner", "number-404", "resolve", "main", "tokenizer.json"] => {
            stream
                .write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .unwrap();
            return;
        }
        ["owner", "number-404", "resolve", "main", file] => std::fs::read(fixture("tiny-gpt2").join(file)).ok(),
        ["owner", name, "resolve", "main" | "step1000", file] => std::fs::read(fixture(name).join(file)).ok(),
        _ => None,
    };
    let Some(body) = body else {
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        return;
    };
    served.fetch_add(1, Ordering::SeqCst);
    let total = body.len();
    let (from, to) = range.unwrap_or((0, usize::MAX));
    let (from, to) = (from.min(total), to.saturating_add(1).min(total));
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{total}\r\nETag: \"{:x}\"\r\n\
         x-repo-commit: {}\r\nConnection: close\r\n\r\n",
        to - from,
        to.saturating_sub(1),
        total * 31 + parts.len(),
        if parts.contains(&"main") { "0123456789" } else { "1000000000" }.repeat(4)
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[from..to]));
}

#[test]
fn hub_ids_load_through_the_cache() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&served);
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| serve(stream, &counter)));
    let home = tempfile::tempdir().unwrap();
    // SAFETY: this test is alone in its process.
    unsafe {
        std::env::set_var("HF_ENDPOINT", format!("http://{address}"));
        std::env::set_var("HF_HOME", home.path());
        std::env::remove_var("HF_HUB_OFFLINE");
        std::env::remove_var("HF_HUB_CACHE");
    }
    let model = Model::load("owner/tiny-gpt2").unwrap();
    assert_eq!(model.config().n_layers, 3);
    assert!(model.tokenizer().is_some());
    assert!(Model::load("owner/tiny-gpt2-sharded").unwrap().tokenizer().is_none());
    let step = Model::load("owner/tiny-gpt2@step1000").unwrap();
    assert!(step.origin().name.ends_with("@step1000") && step.origin().files != model.origin().files);
    let absent = Model::load("owner/tiny-gpt2@step7").unwrap_err().to_string();
    assert!(absent.contains("config.json"), "{absent}");
    let missing = Model::load("owner/no-such-model").unwrap_err().to_string();
    assert!(missing.contains("owner/no-such-model") && missing.contains("config.json"), "{missing}");

    // A tokenizer that the server cannot give just now is not one that the checkpoint does not have.
    let failed = Model::load("owner/number-404").unwrap_err().to_string();
    assert!(failed.contains("tokenizer.json") && failed.contains("503"), "{failed}");

    let traversal = Model::load("owner/evil").unwrap_err().to_string();
    assert!(traversal.contains("plain file names"), "{traversal}");

    let before = served.load(Ordering::SeqCst);
    // SAFETY: as above.
    unsafe { std::env::set_var("HF_HUB_OFFLINE", "1") };
    assert_eq!(Model::load("owner/tiny-gpt2-sharded").unwrap().origin().files.len(), 3);
    let offline = Model::load("owner/tiny-bert").unwrap_err().to_string();
    assert!(offline.contains("offline"), "{offline}");
    assert_eq!(served.load(Ordering::SeqCst), before, "offline mode asked the server");
    for bad in ["a/b/c", "../fixtures", "owner/na me", ".hidden", ""] {
        assert!(Model::load(bad).is_err(), "{bad}");
    }
}
