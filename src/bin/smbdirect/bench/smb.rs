//! `bench --smb`: READ and WRITE of a file on a server, through an RDMA channel and over TCP.
//!
//! Both sides are sessions of their own with the same file, so that each has a process of the
//! server to itself. One thread drives a session; its requests are all in flight at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use smbdirect::fabric::Access;
use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, transform_id, Connection, Credentials, FileId, Memory, MessageId, OpenMode, Options,
    Profile, Protection, RdmaTransform, ReadRequest, Request, Response, Signing, SmbError,
    WriteRequest,
};

use super::process::cpu_seconds_of_trees;
use super::{median, Row};
use crate::args::{resolve, resolve_target};
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
    /// The server's address for SMB Direct; may be given several times (but with --protection), each
    /// is measured against TCP. By software iWARP, or with verbs: in front through an RDMA device
    /// [default: HOST:5445]
    #[arg(long, value_name = "[verbs:]HOST[:PORT]", requires = "smb")]
    rdma: Vec<String>,
    /// Behave on SMB Direct as this client
    #[arg(long, value_name = "CLIENT", requires = "smb", default_value = "linux",
          value_parser = ["linux", "windows"])]
    profile: String,
    /// Sign every message
    #[arg(long, requires = "smb")]
    sign: bool,
    /// Measure instead what signing and encryption cost: an RDMA channel, plain TCP, and SMB Direct
    /// with data in messages, with each algorithm and cipher. One block size, --depth in flight
    #[arg(long, requires = "smb", conflicts_with = "sign")]
    pub(super) protection: bool,
    /// A process of the server on this machine, of which CPU time is counted with that of its
    /// descendants; may be given several times (engine and smbd)
    #[arg(long, value_name = "PID", requires = "smb")]
    pub(super) cpu_of: Vec<u32>,
}

/// One thing that is measured.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) is_read: bool,
    /// Bytes.
    pub(super) block: u32,
    pub(super) is_random: bool,
    pub(super) depth: u32,
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
    let size = file_size(args)?;
    let cases = args.chosen(Case::all(), Case::name)?;
    let targets = Target::all(&args.smb)?;
    let target = targets.first().ok_or_else(no_target)?;
    let share = &target.share;
    let options = || {
        let mut options = options()?;
        if args.smb.sign {
            options.signing = Signing::Always;
        }
        Ok::<_, Failure>(options)
    };
    let mut sides = vec![Side::connect(target, Way::Tcp, options()?)?];
    for target in &targets {
        sides.push(Side::connect(target, Way::Rdma, options()?)?);
    }
    let failed = |error: SmbError| Failure::Failed(format!("{share}: {error}"));
    let name = file_name()?;
    // The one that opens it first deletes it in the end.
    let mut mode = OpenMode::DeleteOnClose;
    for side in &mut sides {
        side.open(&name, mode).map_err(failed)?;
        mode = OpenMode::ReadWrite;
    }
    sides[0].fill(size).map_err(failed)?;

    let mut rows = Vec::new();
    for case in cases {
        let operations = if case.is_random {
            u64::from(args.iters)
        } else if case.block == BLOCK_64K {
            (size / 4).div_ceil(case.block.into())
        } else {
            size / u64::from(case.block)
        };
        let mut figures = vec![Vec::new(); sides.len()];
        let mut cpu = vec![Vec::new(); sides.len()];
        let mut slots = Vec::new();
        for side in &sides {
            slots.push(Slot::all(case, side.way).map_err(failed)?);
        }
        // In the first round the server touches its memory; it does not count.
        for round in 0..=args.repeat {
            for (at, (side, slots)) in sides.iter_mut().zip(&mut slots).enumerate() {
                let before = cpu_seconds_of_trees(&args.smb.cpu_of)?;
                let start = Instant::now();
                side.run(case, operations, size, slots).map_err(failed)?;
                let seconds = start.elapsed().as_secs_f64();
                let used = cpu_seconds_of_trees(&args.smb.cpu_of)? - before;
                if round == 0 {
                    continue;
                }
                let amount = if case.is_random {
                    operations as f64
                } else {
                    (operations * u64::from(case.block)) as f64 / 1e6
                };
                figures[at].push(amount / seconds);
                cpu[at].push(used * 1e6 / operations as f64);
            }
        }
        let figures: Vec<_> = figures.iter_mut().map(|it| median(it)).collect();
        // A clock with ticks: their sum is finer than the middle one.
        let cpu: Vec<f64> = cpu
            .iter()
            .map(|it| it.iter().sum::<f64>() / it.len() as f64)
            .collect();
        for (at, target) in targets.iter().enumerate() {
            let mut what = case.name();
            if targets.len() > 1 {
                what = format!("{what}, {}", target.name);
            }
            if !args.smb.cpu_of.is_empty() {
                rows.push(Row {
                    what: format!("{what}, server's CPU"),
                    ours: cpu[at + 1],
                    tcp: Some(cpu[0]),
                    unit: "usec",
                    goal: "",
                });
            }
            rows.push(Row {
                what,
                ours: figures[at + 1],
                tcp: Some(figures[0]),
                unit: if case.is_random { "IOPS" } else { "MB/s" },
                goal: "",
            });
        }
    }
    for side in sides.iter_mut().rev() {
        side.end().map_err(failed)?;
    }
    Ok(rows)
}

/// Size of the file, bytes.
pub(super) fn file_size(args: &super::Args) -> Result<u64, Failure> {
    let size = args.bytes / u64::from(BLOCK_1M) * u64::from(BLOCK_1M);
    if size == 0 {
        return Err(Failure::Usage(format!(
            "--bytes {}: with --smb use 1M or more, the size of the file",
            args.bytes
        )));
    }
    Ok(size)
}

/// A file name that nobody has.
pub(super) fn file_name() -> Result<String, Failure> {
    let mut name = [0; 8];
    getrandom_name(&mut name)?;
    Ok(format!("smbdirect-bench-{:016x}", u64::from_le_bytes(name)))
}

/// Where the server is, and who we are there.
pub(super) struct Target {
    pub(super) share: String,
    /// The address for SMB Direct as it was given.
    name: String,
    tcp: SocketAddr,
    rdma: SocketAddr,
    credentials: Credentials,
    profile: Profile,
    path: String,
}

impl Target {
    /// The one there is.
    pub(super) fn one(args: &ServerArgs) -> Result<Self, Failure> {
        let mut all = Self::all(args)?;
        if all.len() > 1 {
            return Err(Failure::Usage("--rdma: here it can be given once".into()));
        }
        all.pop().ok_or_else(no_target)
    }

    /// One for each address for SMB Direct.
    fn all(args: &ServerArgs) -> Result<Vec<Self>, Failure> {
        let share = args.smb.as_deref().unwrap_or_default();
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
        let default = [host.to_owned()];
        let names = match args.rdma.is_empty() {
            true => &default[..],
            false => &args.rdma,
        };
        let one = |name: &String| {
            let rdma = resolve_target(name)?;
            let mut profile = match args.profile.as_str() {
                "windows" => Profile::windows(),
                _ => Profile::linux(),
            };
            profile.config.kind = rdma.fabric;
            Ok(Self {
                share: share.to_owned(),
                name: name.clone(),
                tcp: resolve(args.tcp.as_deref().unwrap_or(host), 445)?,
                rdma: rdma.address,
                credentials: credentials(args)?,
                profile,
                path: format!(r"\\{host}\{folder}"),
            })
        };
        names.iter().map(one).collect()
    }
}

fn no_target() -> Failure {
    Failure::Usage("--smb: no address for SMB Direct".into())
}

/// What a session offers.
pub(super) fn options() -> Result<Options, Failure> {
    Options::new().map_err(Failure::of("random numbers"))
}

/// How data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through an RDMA channel.
    Rdma,
    /// In messages on plain TCP.
    Tcp,
    /// In messages on SMB Direct.
    Messages,
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
pub(super) struct Side {
    connection: Connection,
    way: Way,
    /// Of data by RDMA.
    protection: Protection,
    tree: u32,
    file: FileId,
}

/// A place for one request in flight: what it reads into, or writes from.
pub(super) enum Slot {
    Memory(MemSlice),
    Data(Arc<Vec<u8>>),
}

impl Slot {
    /// One for each request in flight. All of it is touched, and stays when an operation is done: a
    /// client has its memory from before, and the faults of new pages cost many times what comes by
    /// RDMA into them (in a User-mode Linux guest 0.1 ms for 4 KiB).
    pub(super) fn all(case: Case, way: Way) -> Result<Vec<Self>, SmbError> {
        let bytes = vec![0x5a; case.block as usize];
        (0..case.depth)
            .map(|_| {
                Ok(match way {
                    Way::Rdma => Self::Memory(MemSlice::from_bytes(&bytes)?),
                    Way::Tcp | Way::Messages => Self::Data(Arc::new(bytes.clone())),
                })
            })
            .collect()
    }
}

impl Side {
    /// A session with the share.
    pub(super) fn connect(
        target: &Target,
        way: Way,
        mut options: Options,
    ) -> Result<Self, Failure> {
        let (what, address) = match way {
            Way::Tcp => ("TCP", target.tcp),
            Way::Rdma | Way::Messages => ("SMB Direct", target.rdma),
        };
        if way == Way::Rdma {
            options.transforms = vec![transform_id::ENCRYPTION, transform_id::SIGNING];
        }
        let connect = || {
            let mut connection = match way {
                Way::Tcp => Connection::tcp(address, &options)?,
                Way::Rdma | Way::Messages => {
                    Connection::direct(address, &target.profile, &options)?
                }
            };
            connection.set_up_session(&target.credentials)?;
            let tree = connection.tree_connect(&target.path)?;
            Ok::<_, SmbError>((connection, tree))
        };
        let (connection, tree) = connect().map_err(|error| {
            Failure::Failed(format!("{} by {what}, {address}: {error}", target.share))
        })?;
        Ok(Self {
            protection: connection.protection(tree).unwrap_or(Protection::Plain),
            connection,
            way,
            tree,
            file: FileId::FULL,
        })
    }

    /// How data by RDMA is protected.
    pub(super) fn protection(&self) -> Protection {
        self.protection
    }

    /// The longest block that goes in one request, at most `block`, bytes.
    pub(super) fn block(&self, block: u32) -> u32 {
        if self.way == Way::Rdma {
            return block;
        }
        let longest = self.connection.max_inline_read();
        let longest = longest.min(self.connection.max_inline_write());
        block.min(longest / BLOCK_64K * BLOCK_64K).max(BLOCK_4K)
    }

    pub(super) fn open(&mut self, name: &str, mode: OpenMode) -> Result<(), SmbError> {
        self.file = self.connection.open(self.tree, name, mode)?.id;
        Ok(())
    }

    /// Gives the file its size, so that reads and writes find blocks.
    pub(super) fn fill(&mut self, size: u64) -> Result<(), SmbError> {
        let case = Case {
            is_read: false,
            block: BLOCK_1M,
            is_random: false,
            depth: 8,
        };
        let mut slots = Slot::all(case, self.way)?;
        self.run(case, size / u64::from(BLOCK_1M), size, &mut slots)
    }

    pub(super) fn end(&mut self) -> Result<(), SmbError> {
        self.connection.close(self.tree, self.file)?;
        self.connection.tree_disconnect(self.tree)?;
        self.connection.logoff()
    }

    /// Does `operations`, one in flight for each of the slots, which are there again in the end.
    pub(super) fn run(
        &mut self,
        case: Case,
        operations: u64,
        size: u64,
        free: &mut Vec<Slot>,
    ) -> Result<(), SmbError> {
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
                    let (whole, length) = (memory.memory(), block as usize);
                    let sealed = self
                        .connection
                        .seal_payload(self.protection, whole, length)?;
                    let request = match sealed {
                        Some(transform) => {
                            let transform = RdmaTransform::of_write(id, transform, named);
                            WriteRequest::transformed(file, offset, block, &transform, named)
                        }
                        None => WriteRequest::rdma(file, offset, block, id, named),
                    };
                    request.to_request(self.tree)?
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
        if let (true, Some(memory)) = (case.is_read, &memory) {
            self.connection.open_payload(&response, memory.memory())?;
        }
        let moved = if case.is_read {
            let result = response.read_result()?;
            if self.way == Way::Rdma {
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

pub(super) const BLOCK_1M: u32 = 1 << 20;
const BLOCK_64K: u32 = 64 << 10;
const BLOCK_4K: u32 = 4 << 10;
const PASSWORD_VARIABLE: &str = "SMBDIRECT_PASSWORD";

#[cfg(test)]
mod tests {
    use super::*;

    /// Minor faults of this thread.
    fn faults() -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // Behind the name, which may have blanks, minflt is the eighth field.
        let (_, fields) = text.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    #[test]
    fn memory_is_there_before_the_clock_runs() {
        let case = Case {
            is_read: true,
            block: BLOCK_1M,
            is_random: false,
            depth: 16,
        };
        let bytes = vec![0x77; BLOCK_1M as usize];
        let slots = Slot::all(case, Way::Rdma).unwrap();
        assert_eq!(slots.len(), 16);
        let before = faults();
        for slot in &slots {
            let Slot::Memory(memory) = slot else {
                panic!("not memory for RDMA");
            };
            memory.write(0, &bytes).unwrap();
        }
        // 4,096 pages of 4 KiB; a few may have gone meanwhile.
        let faults = faults() - before;
        assert!(faults < 1000, "{faults} faults");
    }
}
