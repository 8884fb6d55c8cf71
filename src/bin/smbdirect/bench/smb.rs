//! `bench --smb`: READ and WRITE of a file on a server, through an RDMA channel and over TCP.
//!
//! Both sides are sessions of their own with the same file, so that each has a process of the
//! server to itself. One thread drives a session; its requests are all in flight at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use smbdirect::fabric::Access;
use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, Connection, Credentials, FileId, Memory, MessageId, OpenMode, Options, Profile,
    ReadRequest, Request, Response, Signing, SmbError, WriteRequest,
};

use super::{median, Row};
use crate::args::{resolve, SMBDIRECT_PORT};
use crate::failure::Failure;

/// Where the share is and who may use it.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "READ and WRITE on an SMB server")]
pub(crate) struct ServerArgs {
    /// Measure only this: READ and WRITE in a share of an SMB 3 server that has SMB Direct
    #[arg(long, value_name = "//HOST/SHARE", requires = "user")]
    pub(super) smb: Option<String>,
    /// User, or DOMAIN\USER; the password comes from SMBDIRECT_PASSWORD or --password-file
    #[arg(long, value_name = "NAME", requires = "smb")]
    user: Option<String>,
    /// File with the password in its first line
    #[arg(long, value_name = "FILE", requires = "smb")]
    password_file: Option<PathBuf>,
    /// The server's address for TCP [default: HOST:445]
    #[arg(long, value_name = "ADDRESS", requires = "smb")]
    tcp: Option<String>,
    /// The server's address for SMB Direct [default: HOST:5445]
    #[arg(long, value_name = "ADDRESS", requires = "smb")]
    rdma: Option<String>,
    /// Behave on SMB Direct as this client
    #[arg(long, value_name = "CLIENT", requires = "smb", default_value = "linux",
          value_parser = ["linux", "windows"])]
    profile: String,
    /// Sign every message
    #[arg(long, requires = "smb")]
    sign: bool,
}

/// One thing that is measured.
#[derive(Clone, Copy)]
struct Case {
    is_read: bool,
    block: u32,
    is_random: bool,
    depth: u32,
}

impl Case {
    fn name(&self) -> String {
        let what = if self.is_read { "read" } else { "write" };
        let order = if self.is_random {
            "random"
        } else {
            "sequential"
        };
        let block = match self.block {
            BLOCK_1M => "1 MiB",
            BLOCK_64K => "64 KiB",
            _ => "4 KiB",
        };
        format!("smb: {order} {what}, {block}, depth {}", self.depth)
    }

    fn all() -> impl Iterator<Item = Self> {
        let kinds = [(BLOCK_1M, false), (BLOCK_64K, false), (BLOCK_4K, true)];
        kinds.into_iter().flat_map(|(block, is_random)| {
            [false, true].into_iter().flat_map(move |is_read| {
                [1, 16].map(|depth| Self {
                    is_read,
                    block,
                    is_random,
                    depth,
                })
            })
        })
    }
}

/// Measures all cases.
pub(super) fn measure(args: &super::Args) -> Result<Vec<Row>, Failure> {
    let share = args.smb.smb.as_deref().unwrap_or_default();
    let size = args.bytes / u64::from(BLOCK_1M) * u64::from(BLOCK_1M);
    if size == 0 {
        return Err(Failure::Usage(format!(
            "--bytes {}: with --smb use 1M or more, the size of the file",
            args.bytes
        )));
    }
    let [mut tcp, mut rdma] = connect(&args.smb, share)?;
    let failed = |error: SmbError| Failure::Failed(format!("{share}: {error}"));
    let mut name = [0; 8];
    getrandom_name(&mut name)?;
    let name = format!("smbdirect-bench-{:016x}", u64::from_le_bytes(name));
    // The one that opens it first deletes it in the end.
    tcp.open(&name, OpenMode::DeleteOnClose).map_err(failed)?;
    rdma.open(&name, OpenMode::ReadWrite).map_err(failed)?;
    tcp.fill(size).map_err(failed)?;

    let mut rows = Vec::new();
    for case in Case::all() {
        let operations = if case.is_random {
            u64::from(args.iters)
        } else if case.block == BLOCK_64K {
            (size / 4).div_ceil(case.block.into())
        } else {
            size / u64::from(case.block)
        };
        let mut figures = [Vec::new(), Vec::new()];
        for _ in 0..args.repeat {
            for (side, figures) in [&mut rdma, &mut tcp].into_iter().zip(&mut figures) {
                let start = Instant::now();
                side.run(case, operations, size).map_err(failed)?;
                let seconds = start.elapsed().as_secs_f64();
                let amount = if case.is_random {
                    operations as f64
                } else {
                    (operations * u64::from(case.block)) as f64 / 1e6
                };
                figures.push(amount / seconds);
            }
        }
        let [ours, tcp] = &mut figures;
        rows.push(Row {
            what: case.name(),
            ours: median(ours),
            tcp: Some(median(tcp)),
            unit: if case.is_random { "IOPS" } else { "MB/s" },
            goal: "",
        });
    }
    rdma.end().map_err(failed)?;
    tcp.end().map_err(failed)?;
    Ok(rows)
}

/// A session over TCP, and one over SMB Direct.
fn connect(args: &ServerArgs, share: &str) -> Result<[Side; 2], Failure> {
    let wrong = || {
        Failure::Usage(format!(
            "--smb {share}: write //HOST/SHARE, for instance //192.0.2.1/data"
        ))
    };
    let mut parts = share.trim_start_matches(['/', '\\']).split(['/', '\\']);
    let (Some(host), Some(folder), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(wrong());
    };
    if host.is_empty() || folder.is_empty() {
        return Err(wrong());
    }
    let tcp = resolve(args.tcp.as_deref().unwrap_or(host), 445)?;
    let rdma = resolve(args.rdma.as_deref().unwrap_or(host), SMBDIRECT_PORT)?;
    let credentials = credentials(args)?;
    let profile = match args.profile.as_str() {
        "windows" => Profile::windows(),
        _ => Profile::linux(),
    };
    let path = format!(r"\\{host}\{folder}");
    let side = |is_direct| {
        let mut options = Options::new()?;
        if args.sign {
            options.signing = Signing::Always;
        }
        let mut connection = if is_direct {
            Connection::direct(rdma, &profile, &options)?
        } else {
            Connection::tcp(tcp, &options)?
        };
        connection.set_up_session(&credentials)?;
        let tree = connection.tree_connect(&path)?;
        Ok(Side {
            connection,
            is_direct,
            tree,
            file: FileId::FULL,
        })
    };
    let named = |what: &str| {
        let text = format!("{share} by {what}");
        move |error: SmbError| Failure::Failed(format!("{text}: {error}"))
    };
    Ok([
        side(false).map_err(named(&format!("TCP, {tcp}")))?,
        side(true).map_err(named(&format!("SMB Direct, {rdma}")))?,
    ])
}

fn credentials(args: &ServerArgs) -> Result<Credentials, Failure> {
    let name = args.user.as_deref().unwrap_or_default();
    let (domain, user) = name.split_once('\\').unwrap_or(("", name));
    let password = match &args.password_file {
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .map_err(Failure::of(format!("--password-file {}", file.display())))?;
            text.lines().next().unwrap_or_default().to_owned()
        }
        None => std::env::var(PASSWORD_VARIABLE).map_err(|_| {
            Failure::Usage(format!(
                "no password: set {PASSWORD_VARIABLE}, or name a file with --password-file"
            ))
        })?,
    };
    Ok(Credentials {
        user: user.into(),
        password,
        domain: domain.into(),
    })
}

fn getrandom_name(bytes: &mut [u8]) -> Result<(), Failure> {
    let random = Options::new().map_err(Failure::of("random numbers"))?;
    bytes.copy_from_slice(&random.client_guid[..bytes.len()]);
    Ok(())
}

/// A session with the file open.
struct Side {
    connection: Connection,
    is_direct: bool,
    tree: u32,
    file: FileId,
}

/// A place for one request in flight: what it reads into, or writes from.
enum Slot {
    Memory(MemSlice),
    Data(Arc<Vec<u8>>),
}

impl Side {
    fn open(&mut self, name: &str, mode: OpenMode) -> Result<(), SmbError> {
        self.file = self.connection.open(self.tree, name, mode)?.id;
        Ok(())
    }

    /// Gives the file its size, so that reads and writes find blocks.
    fn fill(&mut self, size: u64) -> Result<(), SmbError> {
        let case = Case {
            is_read: false,
            block: BLOCK_1M,
            is_random: false,
            depth: 8,
        };
        self.run(case, size / u64::from(BLOCK_1M), size)
    }

    fn end(&mut self) -> Result<(), SmbError> {
        self.connection.close(self.tree, self.file)?;
        self.connection.tree_disconnect(self.tree)?;
        self.connection.logoff()
    }

    /// Does `operations`, `depth` of them in flight.
    fn run(&mut self, case: Case, operations: u64, size: u64) -> Result<(), SmbError> {
        let mut free = Vec::new();
        for _ in 0..case.depth {
            free.push(if self.is_direct {
                Slot::Memory(Memory::allocate(case.block as usize)?)
            } else {
                Slot::Data(Arc::new(vec![0x5a; case.block as usize]))
            });
        }
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut flying: Vec<(MessageId, Slot, Option<Memory>)> = Vec::new();
        let mut begun = 0;
        loop {
            while begun < operations {
                let Some(slot) = free.pop() else {
                    break;
                };
                let blocks = size / u64::from(case.block);
                let block = if case.is_random {
                    // xorshift64
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random % blocks
                } else {
                    begun % blocks
                };
                let (request, memory) = self.request(case, block * u64::from(case.block), &slot)?;
                flying.push((self.connection.submit(request)?, slot, memory));
                begun += 1;
            }
            if flying.is_empty() {
                return Ok(());
            }
            let (id, response) = self.connection.wait_any()?;
            let Some(at) = flying.iter().position(|(flying, ..)| *flying == id) else {
                continue;
            };
            let (_, slot, memory) = flying.swap_remove(at);
            self.finish(case, response, memory)?;
            free.push(slot);
        }
    }

    fn request(
        &mut self,
        case: Case,
        offset: u64,
        slot: &Slot,
    ) -> Result<(Request, Option<Memory>), SmbError> {
        let (file, block) = (self.file, case.block);
        match slot {
            Slot::Memory(memory) => {
                let access = Access {
                    remote_read: !case.is_read,
                    remote_write: case.is_read,
                };
                let memory = self.connection.direct_mut()?.register(memory, access)?;
                let id = channel::RDMA_V1_INVALIDATE;
                let named = memory.descriptors();
                let request = if case.is_read {
                    ReadRequest::rdma(file, offset, block, id, named).to_request(self.tree)?
                } else {
                    WriteRequest::rdma(file, offset, block, id, named).to_request(self.tree)?
                };
                Ok((request, Some(memory)))
            }
            Slot::Data(data) => {
                let request = if case.is_read {
                    ReadRequest::inline(file, offset, block).to_request(self.tree)?
                } else {
                    WriteRequest::inline(file, offset, data.clone()).to_request(self.tree)?
                };
                Ok((request, None))
            }
        }
    }

    /// Looks whether all went over, and by the way that is measured.
    fn finish(
        &mut self,
        case: Case,
        response: Response,
        memory: Option<Memory>,
    ) -> Result<(), SmbError> {
        let response = response.success()?;
        let moved = if case.is_read {
            let result = response.read_result()?;
            if self.is_direct {
                result.data_remaining
            } else {
                result.data.len() as u32
            }
        } else {
            response.written()?
        };
        if moved != case.block {
            return Err(SmbError::Message(format!(
                "{moved} bytes moved instead of {}",
                case.block
            )));
        }
        if let Some(memory) = memory {
            self.connection.direct_mut()?.deregister(&memory);
        }
        self.connection.recycle(response);
        Ok(())
    }
}

const BLOCK_1M: u32 = 1 << 20;
const BLOCK_64K: u32 = 64 << 10;
const BLOCK_4K: u32 = 4 << 10;
const PASSWORD_VARIABLE: &str = "SMBDIRECT_PASSWORD";
