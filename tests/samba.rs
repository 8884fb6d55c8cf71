//! Debian's unmodified smbclient, `smbdirect proxy`, the engine and the patched smbd together.

mod common;
#[path = "common/samba.rs"]
mod samba;

use std::fs;
use std::path::Path;

use samba::{samba, Server};

/// Bytes without a pattern, the same for the same seed.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Files of a folder with their contents, by relative name.
fn tree(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap();
                files.push((name.display().to_string(), fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn files_and_trees_arrive_intact() {
    let Some(bin) = samba("files_and_trees_arrive_intact") else {
        return;
    };
    let server = Server::start(bin, "");
    let client = server.dir.join("client");
    let large = noise(64 << 20, 1);
    fs::write(client.join("large"), &large).unwrap();
    for i in 0..120 {
        let folder = client.join(format!("tree/d{}", i % 7));
        fs::create_dir_all(&folder).unwrap();
        // Sizes on both sides of one fragment, and an empty file.
        let size = (i * i * 7) % 40_000;
        fs::write(folder.join(format!("f{i}")), noise(size, i as u64 + 2)).unwrap();
    }

    server.smb("put large; get large back");
    assert!(fs::read(server.share("large")).unwrap() == large);
    assert!(fs::read(client.join("back")).unwrap() == large);

    let sent = tree(&client.join("tree"));
    assert_eq!(sent.len(), 120);
    server.smb("recurse on; prompt off; mput tree");
    assert!(tree(&server.share("tree")) == sent);
    fs::create_dir(client.join("got")).unwrap();
    server.smb("recurse on; prompt off; lcd got; mget tree");
    assert!(tree(&client.join("got/tree")) == sent);
    server.wait_for_baseline();
}
