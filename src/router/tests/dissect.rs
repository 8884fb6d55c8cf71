//! Wireshark's reading of what is sent from here.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

use super::vectors::{CIFS_6_12_NEGOTIATE, CIFS_7_3_NEGOTIATE};
use super::*;

/// One PDU of a conversation.
enum Pdu {
    FromClient(Vec<u8>),
    FromServer(Vec<u8>),
}

/// A directory that goes away with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("smbdirect-router-{}-{number}", process::id()));
        fs::create_dir(&path).expect("scratch directory");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: what stays behind is a few KiB under the system's temporary directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether both programs are there; says so if they are not.
fn has_wireshark() -> bool {
    let missing = ["tshark", "text2pcap"].into_iter().find(|program| {
        let run = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        !run.is_ok_and(|status| status.success())
    });
    if let Some(program) = missing {
        eprintln!("skipped: {program} is not installed (apt-get install tshark)");
    }
    missing.is_none()
}

/// Writes `pdus` as a TCP conversation with port 445.
fn capture(scratch: &Scratch, pdus: &[Pdu]) -> PathBuf {
    let mut text = String::new();
    for pdu in pdus {
        let (direction, bytes) = match pdu {
            Pdu::FromClient(bytes) => ('I', bytes),
            Pdu::FromServer(bytes) => ('O', bytes),
        };
        // The transport header of SMB2 over TCP: a 32-bit length, most significant byte first.
        let framed = [
            &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..],
            bytes,
        ]
        .concat();
        writeln!(text, "{direction}").unwrap();
        for (row, chunk) in framed.chunks(16).enumerate() {
            write!(text, "{:06x}", 16 * row).unwrap();
            chunk
                .iter()
                .for_each(|byte| write!(text, " {byte:02x}").unwrap());
            text.push('\n');
        }
        text.push('\n');
    }
    let (input, output) = (scratch.0.join("pdus.txt"), scratch.0.join("pdus.pcap"));
    fs::write(&input, text).unwrap();
    let run = Command::new("text2pcap")
        .args(["-q", "-D", "-T", "50000,445", "-4", "127.0.0.1,127.0.0.2"])
        .args([&input, &output])
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    output
}

fn tshark(capture: &Path, args: &[&str]) -> String {
    let run = Command::new("tshark")
        .arg("-r")
        .arg(capture)
        .args(args)
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    String::from_utf8(run.stdout).unwrap()
}

/// The named fields of each frame that `filter` selects, one line a frame, fields by '|'.
fn fields(capture: &Path, filter: &str, names: &[&str]) -> Vec<String> {
    let mut args = vec!["-Y", filter, "-T", "fields", "-E", "separator=|"];
    for name in names {
        args.extend(["-e", name]);
    }
    tshark(capture, &args).lines().map(str::to_owned).collect()
}

fn assert_sound(capture: &Path, frames: usize) {
    let known = fields(capture, "smb2.cmd", &["frame.number"]);
    assert_eq!(known.len(), frames, "every frame is SMB2");
    // _ws.expert.severity 0x600000 is "warning".
    let odd = tshark(
        capture,
        &[
            "-Y",
            "_ws.malformed || _ws.expert.severity >= 0x600000",
            "-V",
        ],
    );
    assert_eq!(odd, "", "tshark finds something wrong");
}

#[test]
fn test_tshark_reads_311_answers() {
    if !has_wireshark() {
        return;
    }
    let scratch = Scratch::new();
    for (request, ids) in [
        (CIFS_6_12_NEGOTIATE.to_vec(), "0x0001,0x0002|0x0001|0x0002|"),
        (CIFS_7_3_NEGOTIATE.to_vec(), "0x0001,0x0002|0x0001|0x0002|"),
        (
            Negotiate::windows().pdu(),
            "0x0001,0x0002,0x0008|0x0001|0x0002|0x0002",
        ),
    ] {
        let parsed = parse_negotiate(&request).unwrap();
        let response = answer_negotiate(&parsed, &config(), &INPUTS).unwrap();
        let pdus = [Pdu::FromClient(request), Pdu::FromServer(response)];
        let capture = capture(&scratch, &pdus);
        assert_sound(&capture, 2);
        let answers = "smb2.flags.response == 1";
        assert_eq!(
            fields(
                &capture,
                answers,
                &[
                    "smb2.nt_status",
                    "smb2.dialect",
                    "smb2.credits.granted",
                    "smb2.max_trans_size",
                    "smb2.max_read_size",
                    "smb2.max_write_size",
                    "spnego.MechType",
                ]
            ),
            ["0x00000000|0x0311|1|1048576|8388608|4194304|1.3.6.1.4.1.311.2.2.10"]
        );
        assert_eq!(
            fields(
                &capture,
                answers,
                &[
                    "smb2.negotiate_context.type",
                    "smb2.negotiate_context.hash_algorithm",
                    "smb2.negotiate_context.cipher_id",
                    "smb2.negotiate_context.signing_id",
                ]
            ),
            [ids]
        );
        let salt: String = INPUTS
            .salt
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            fields(&capture, answers, &["smb2.negotiate_context.salt"]),
            [salt]
        );
    }
}

#[test]
fn test_tshark_reads_30_answers_and_refusals() {
    if !has_wireshark() {
        return;
    }
    let scratch = Scratch::new();
    for (dialect, shown) in [(0x0300, "0x0300"), (0x0302, "0x0302")] {
        let request = Negotiate::with_dialects(&[dialect]).pdu();
        let parsed = parse_negotiate(&request).unwrap();
        let response = answer_negotiate(&parsed, &config(), &INPUTS).unwrap();
        let setup = binding(0x4711);
        let unknown = parse_session_setup(&setup)
            .unwrap()
            .route(|_| false)
            .unwrap_err();
        let refusal = unknown.response(&setup).unwrap();
        let capture = capture(
            &scratch,
            &[
                Pdu::FromClient(request),
                Pdu::FromServer(response),
                Pdu::FromClient(setup),
                Pdu::FromServer(refusal),
            ],
        );
        assert_sound(&capture, 4);
        let names = [
            "smb2.cmd",
            "smb2.msg_id",
            "smb2.nt_status",
            "smb2.dialect",
            "smb2.sesid",
        ];
        assert_eq!(
            fields(&capture, "smb2.flags.response == 1", &names),
            [
                format!("0|0|0x00000000|{shown}|0x0000000000000000"),
                "1|1|0xc0000203||0x0000000000004711".to_owned(),
            ]
        );
    }
}
