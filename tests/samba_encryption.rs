//! Encrypted sessions and shares: our own SMB client against the patched smbd.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;

use std::sync::Arc;

use smb::{credentials, noise, open_share, options, start, start_with, tcp};
use smbdirect::smb::{
    status, Cipher, Connection, Dialect, Encrypting, FileId, OpenMode, Options, Profile,
    ReadRequest, Request, Signing, WriteRequest,
};

/// The ciphers that a dialect knows.
fn ciphers(dialect: Dialect) -> &'static [Cipher] {
    match dialect {
        Dialect::Smb300 | Dialect::Smb302 => &[Cipher::Aes128Ccm],
        Dialect::Smb311 => &Cipher::ALL,
    }
}

fn encrypting(dialect: Dialect, cipher: Cipher) -> Options {
    Options {
        encrypting: Encrypting::Always,
        ciphers: vec![cipher],
        ..options(dialect, Signing::IfRequired)
    }
}

#[test]
fn every_cipher_encrypts_sessions() {
    let Some(server) = start("every_cipher_encrypts_sessions") else {
        return;
    };
    let data = noise(200_000, 1);
    for dialect in Dialect::ALL {
        for &cipher in ciphers(dialect) {
            for direct in [false, true] {
                let what = format!("{dialect:?} {cipher:?} direct {direct}");
                let options = encrypting(dialect, cipher);
                let connection = if direct {
                    smb::direct(&server, &Profile::windows(), &options)
                } else {
                    Connection::tcp(tcp(&server), &options)
                };
                let (mut it, session, tree) = open_share(connection.expect(&what));
                assert_eq!(it.negotiated().cipher, Some(cipher), "{what}");
                assert!(session.encrypts(), "{what}");
                let echo = it.call(Request::echo().unwrap()).expect(&what);
                assert!(echo.is_encrypted && !echo.header.flags.signed(), "{what}");

                let file = it.open(tree, "file", OpenMode::Overwrite).expect(&what);
                assert_eq!(it.write(tree, file.id, 5, &data).expect(&what), 200_000);
                let longest = it.max_inline_read();
                let back = it.read(tree, file.id, 0, longest).expect(&what);
                assert!(back[..5] == [0; 5] && back[5..] == data, "{what}");
                it.close(tree, file.id).expect(&what);

                // A compound is encrypted as a whole.
                let write = WriteRequest::inline(FileId::FULL, 0, Arc::new(data[..5000].to_vec()));
                let read = ReadRequest::inline(FileId::FULL, 1000, 65_536);
                let related = vec![
                    Request::create(tree, "compound", OpenMode::Overwrite).unwrap(),
                    write.to_request(tree).unwrap(),
                    read.to_request(tree).unwrap(),
                    Request::close(tree, FileId::FULL).unwrap(),
                ];
                let ids = it.submit_compound(related, true).expect(&what);
                for (i, id) in ids.into_iter().enumerate() {
                    let response = it.wait(id).unwrap().success().expect(&what);
                    assert!(response.is_encrypted, "{what}");
                    if i == 2 {
                        assert!(response.read_result().unwrap().data == &data[1000..5000]);
                    }
                }

                // One that is answered later, and cancelled.
                let root = it.open(tree, "", OpenMode::Directory).expect(&what);
                let notify = Request::change_notify(tree, root.id).unwrap();
                let notify = it.submit(notify).unwrap();
                it.wait_for_interim(notify).expect(&what);
                it.cancel(notify).unwrap();
                let response = it.wait(notify).expect(&what);
                assert!(response.is_encrypted, "{what}");
                assert_eq!(response.status(), status::CANCELLED, "{what}");
                it.logoff().expect(&what);
            }
        }
    }
    server.wait_for_baseline();
}

/// The server's choice; the client offers ciphers and asks for nothing.
#[test]
fn servers_and_shares_that_require_encryption() {
    let test = "servers_and_shares_that_require_encryption";
    let share = "[secret]\npath = @DIR@/share\nsmb encrypt = required\nread only = no";
    for (global, is_session) in [("server smb encrypt = required", true), (share, false)] {
        let Some(server) = start_with(test, global) else {
            return;
        };
        for dialect in Dialect::ALL {
            for direct in [false, true] {
                let what = format!("{global} {dialect:?} direct {direct}");
                let options = options(dialect, Signing::IfRequired);
                let connection = if direct {
                    smb::direct(&server, &Profile::linux(), &options)
                } else {
                    Connection::tcp(tcp(&server), &options)
                };
                let mut it = connection.expect(&what);
                let session = it.set_up_session(&credentials()).expect(&what);
                assert_eq!(session.encrypts(), is_session, "{what}");
                let name = if is_session { "share" } else { "secret" };
                let path = format!(r"\\127.0.0.1\{name}");
                let tree = it.tree_connect(&path).expect(&what);
                let file = it.open(tree, "file", OpenMode::Overwrite).expect(&what).id;
                assert_eq!(it.write(tree, file, 0, b"secret").expect(&what), 6);
                let read = ReadRequest::inline(file, 0, 100).to_request(tree).unwrap();
                let response = it.call(read.clone()).expect(&what);
                assert!(response.is_encrypted, "{what}");
                assert_eq!(response.read_result().unwrap().data, b"secret");
                // Nobody gets at it without.
                let plain = it.submit(read.clone().encrypted(false)).unwrap();
                assert_eq!(it.wait(plain).unwrap().status(), status::ACCESS_DENIED);
                assert_eq!(it.read(tree, file, 0, 100).expect(&what), b"secret");
                let echo = it.call(Request::echo().unwrap()).expect(&what);
                assert_eq!(echo.is_encrypted, is_session, "{what}");
            }
        }
        server.wait_for_baseline();
    }
}

/// All channels have the same keys, so a nonce of one must not come on another: our client sees to
/// it for what it sends, and refuses what the server sends with a nonce that it had.
#[test]
fn channels_share_the_keys_of_encryption() {
    let Some(server) = start("channels_share_the_keys_of_encryption") else {
        return;
    };
    for dialect in Dialect::ALL {
        for &cipher in ciphers(dialect) {
            let what = format!("{dialect:?} {cipher:?}");
            let options = encrypting(dialect, cipher);
            let direct = || smb::direct(&server, &Profile::windows(), &options);
            let first = Connection::tcp(tcp(&server), &options).expect(&what);
            let (first, session, tree) = open_share(first);
            let mut channels = vec![first, direct().expect(&what), direct().expect(&what)];
            for channel in &mut channels[1..] {
                channel.bind(&session, &credentials()).expect(&what);
            }
            let file = channels[0].open(tree, "channels", OpenMode::Overwrite);
            let file = file.expect(&what).id;
            for round in 0..50u64 {
                for channel in &mut channels {
                    let data = noise(1000, round);
                    let offset = round * 1000;
                    channel.write(tree, file, offset, &data).expect(&what);
                    let back = channel.read(tree, file, offset, 1000).expect(&what);
                    assert!(back == data, "{what}");
                }
            }
            drop(channels);
            server.wait_for_baseline();
        }
    }
}
