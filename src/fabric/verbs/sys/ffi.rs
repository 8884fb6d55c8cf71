//! The ABI of libibverbs.so.1 and librdmacm.so.1, as far as this fabric uses it.
//!
//! Names are those of `infiniband/verbs.h` and `rdma/rdma_cma.h`. The test at the end has a C
//! compiler compare every size and offset with the headers, where they are installed.
#![allow(non_camel_case_types, missing_docs)]

use libc::{c_char, c_int, c_uint, c_void, sockaddr, sockaddr_storage};

/// A type of which only pointers are handled.
macro_rules! opaque {
    ($($name:ident)*) => { $(
        #[repr(C)]
        pub(super) struct $name {
            _private: [u8; 0],
        }
    )* };
}

opaque! { ibv_srq }

#[repr(C)]
pub(super) struct ibv_device {
    _ops: [*mut c_void; 2],
    pub(super) node_type: c_int,
    pub(super) transport_type: c_int,
    pub(super) name: [c_char; 64],
    pub(super) dev_name: [c_char; 64],
    pub(super) dev_path: [c_char; 256],
    pub(super) ibdev_path: [c_char; 256],
}

#[repr(C)]
pub(super) struct ibv_context_ops {
    _query: [*mut c_void; 7],
    pub(super) alloc_mw: Option<unsafe extern "C" fn(*mut ibv_pd, c_int) -> *mut ibv_mw>,
    _bind_mw: *mut c_void,
    pub(super) dealloc_mw: Option<unsafe extern "C" fn(*mut ibv_mw) -> c_int>,
    _create_cq: *mut c_void,
    pub(super) poll_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int>,
    pub(super) req_notify_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int>,
    _cq_and_srq: [*mut c_void; 7],
    _post_srq_recv: *mut c_void,
    _qp: [*mut c_void; 4],
    pub(super) post_send:
        Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int>,
    pub(super) post_recv:
        Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int>,
    _rest: [*mut c_void; 5],
}

#[repr(C)]
pub(super) struct ibv_context {
    pub(super) device: *mut ibv_device,
    pub(super) ops: ibv_context_ops,
    pub(super) cmd_fd: c_int,
    pub(super) async_fd: c_int,
    pub(super) num_comp_vectors: c_int,
    _mutex: libc::pthread_mutex_t,
    /// [`VERBS_ABI_IS_EXTENDED`]: a [`verbs_context`] has it as its last member.
    pub(super) abi_compat: *mut c_void,
}

/// What stands before the ibv_context of an extended context, from the operation used here on. It
/// grows at its start.
#[repr(C)]
pub(super) struct verbs_context {
    pub(super) modify_cq:
        Option<unsafe extern "C" fn(*mut ibv_cq, *mut ibv_modify_cq_attr) -> c_int>,
    _ops: [*mut c_void; 21],
    /// Bytes of the whole, with its ibv_context.
    pub(super) sz: usize,
}

pub(super) const VERBS_ABI_IS_EXTENDED: usize = usize::MAX;

#[repr(C)]
pub(super) struct ibv_modify_cq_attr {
    pub(super) attr_mask: u32,
    /// moderate.
    pub(super) cq_count: u16,
    pub(super) cq_period: u16,
}

pub(super) const IBV_CQ_ATTR_MODERATE: u32 = 1;

#[repr(C)]
pub(super) struct ibv_pd {
    pub(super) context: *mut ibv_context,
    pub(super) handle: u32,
}

#[repr(C)]
pub(super) struct ibv_mr {
    pub(super) context: *mut ibv_context,
    pub(super) pd: *mut ibv_pd,
    pub(super) addr: *mut c_void,
    pub(super) length: usize,
    pub(super) handle: u32,
    pub(super) lkey: u32,
    pub(super) rkey: u32,
}

#[repr(C)]
pub(super) struct ibv_mw {
    pub(super) context: *mut ibv_context,
    pub(super) pd: *mut ibv_pd,
    pub(super) rkey: u32,
    pub(super) handle: u32,
    pub(super) type_: c_int,
}

/// The member bind_mw of a work request.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct wr_bind_mw {
    pub(super) mw: *mut ibv_mw,
    pub(super) rkey: u32,
    pub(super) mr: *mut ibv_mr,
    pub(super) addr: u64,
    pub(super) length: u64,
    pub(super) mw_access_flags: c_uint,
}

#[repr(C)]
pub(super) struct ibv_comp_channel {
    pub(super) context: *mut ibv_context,
    pub(super) fd: c_int,
    pub(super) refcnt: c_int,
}

#[repr(C)]
pub(super) struct ibv_cq {
    pub(super) context: *mut ibv_context,
    pub(super) channel: *mut ibv_comp_channel,
    pub(super) cq_context: *mut c_void,
    pub(super) handle: u32,
    pub(super) cqe: c_int,
    // Locks and counters follow.
}

#[repr(C)]
pub(super) struct ibv_qp {
    pub(super) context: *mut ibv_context,
    pub(super) qp_context: *mut c_void,
    pub(super) pd: *mut ibv_pd,
    pub(super) send_cq: *mut ibv_cq,
    pub(super) recv_cq: *mut ibv_cq,
    pub(super) srq: *mut ibv_srq,
    pub(super) handle: u32,
    pub(super) qp_num: u32,
    // State, type, locks and counters follow.
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ibv_qp_cap {
    pub(super) max_send_wr: u32,
    pub(super) max_recv_wr: u32,
    pub(super) max_send_sge: u32,
    pub(super) max_recv_sge: u32,
    pub(super) max_inline_data: u32,
}

#[repr(C)]
pub(super) struct ibv_qp_init_attr {
    pub(super) qp_context: *mut c_void,
    pub(super) send_cq: *mut ibv_cq,
    pub(super) recv_cq: *mut ibv_cq,
    pub(super) srq: *mut ibv_srq,
    pub(super) cap: ibv_qp_cap,
    pub(super) qp_type: c_int,
    pub(super) sq_sig_all: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ibv_sge {
    pub(super) addr: u64,
    pub(super) length: u32,
    pub(super) lkey: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct wr_rdma {
    pub(super) remote_addr: u64,
    pub(super) rkey: u32,
}

/// The member `wr`: as large as its largest alternative, `atomic`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) union send_wr_wr {
    pub(super) rdma: wr_rdma,
    pub(super) atomic: [u64; 4],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ibv_send_wr {
    pub(super) wr_id: u64,
    pub(super) next: *mut ibv_send_wr,
    pub(super) sg_list: *mut ibv_sge,
    pub(super) num_sge: c_int,
    pub(super) opcode: c_int,
    pub(super) send_flags: c_uint,
    /// Or imm_data.
    pub(super) invalidate_rkey: u32,
    pub(super) wr: send_wr_wr,
    pub(super) remote_srqn: u32,
    pub(super) bind_mw: wr_bind_mw,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ibv_recv_wr {
    pub(super) wr_id: u64,
    pub(super) next: *mut ibv_recv_wr,
    pub(super) sg_list: *mut ibv_sge,
    pub(super) num_sge: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ibv_wc {
    pub(super) wr_id: u64,
    pub(super) status: c_int,
    pub(super) opcode: c_int,
    pub(super) vendor_err: u32,
    pub(super) byte_len: u32,
    /// Or imm_data.
    pub(super) invalidated_rkey: u32,
    pub(super) qp_num: u32,
    pub(super) src_qp: u32,
    pub(super) wc_flags: c_uint,
    pub(super) pkey_index: u16,
    pub(super) slid: u16,
    pub(super) sl: u8,
    pub(super) dlid_path_bits: u8,
}

#[repr(C)]
pub(super) struct ibv_device_attr {
    pub(super) fw_ver: [c_char; 64],
    pub(super) guids: [u64; 2],
    pub(super) max_mr_size: u64,
    pub(super) page_size_cap: u64,
    pub(super) vendor_id: u32,
    pub(super) vendor_part_id: u32,
    pub(super) hw_ver: u32,
    pub(super) max_qp: c_int,
    pub(super) max_qp_wr: c_int,
    pub(super) device_cap_flags: c_uint,
    pub(super) max_sge: c_int,
    pub(super) max_sge_rd: c_int,
    pub(super) max_cq: c_int,
    pub(super) max_cqe: c_int,
    pub(super) max_mr: c_int,
    pub(super) max_pd: c_int,
    pub(super) max_qp_rd_atom: c_int,
    pub(super) max_ee_rd_atom: c_int,
    pub(super) max_res_rd_atom: c_int,
    pub(super) max_qp_init_rd_atom: c_int,
    _rest: [c_int; 16],
    _ports: [u8; 4],
}

/// The first members of ibv_port_attr, and room for all that a provider may write.
#[repr(C)]
pub(super) struct ibv_port_attr {
    pub(super) state: c_int,
    pub(super) mtus: [c_int; 2],
    pub(super) gid_tbl_len: c_int,
    pub(super) flags_and_counters: [u32; 4],
    pub(super) pkey_tbl_len: u16,
    pub(super) lids: [u16; 2],
    pub(super) lmc: u8,
    pub(super) max_vl_num: u8,
    pub(super) sm_sl: u8,
    pub(super) subnet_timeout: u8,
    pub(super) init_type_reply: u8,
    pub(super) active_width: u8,
    pub(super) active_speed: u8,
    pub(super) phys_state: u8,
    pub(super) link_layer: u8,
    _more: [u8; 79],
}

#[repr(C)]
pub(super) struct ibv_async_event {
    /// A queue, or the number of a port (union).
    pub(super) element: *mut c_void,
    pub(super) event_type: c_int,
}

#[repr(C)]
pub(super) struct rdma_event_channel {
    pub(super) fd: c_int,
}

#[repr(C)]
pub(super) struct rdma_cm_id {
    pub(super) verbs: *mut ibv_context,
    pub(super) channel: *mut rdma_event_channel,
    pub(super) context: *mut c_void,
    pub(super) qp: *mut ibv_qp,
    /// route.addr.
    pub(super) src_addr: sockaddr_storage,
    pub(super) dst_addr: sockaddr_storage,
    _ib_addr: [u64; 5],
    _path_rec: *mut c_void,
    /// And the padding at the end of struct rdma_route.
    _num_paths: [c_int; 2],
    pub(super) ps: c_int,
    pub(super) port_num: u8,
    // Further members, which this fabric does not use, follow.
}

#[repr(C)]
pub(super) struct rdma_conn_param {
    pub(super) private_data: *const c_void,
    pub(super) private_data_len: u8,
    pub(super) responder_resources: u8,
    pub(super) initiator_depth: u8,
    pub(super) flow_control: u8,
    pub(super) retry_count: u8,
    pub(super) rnr_retry_count: u8,
    pub(super) srq: u8,
    pub(super) qp_num: u32,
}

#[repr(C)]
pub(super) struct rdma_cm_event {
    pub(super) id: *mut rdma_cm_id,
    pub(super) listen_id: *mut rdma_cm_id,
    pub(super) event: c_int,
    pub(super) status: c_int,
    /// param.conn
    pub(super) conn: rdma_conn_param,
    // The rest of param.ud follows.
}

pub(super) const IBV_TRANSPORT_IB: c_int = 0;
pub(super) const IBV_TRANSPORT_IWARP: c_int = 1;
pub(super) const IBV_DEVICE_MEM_MGT_EXTENSIONS: c_uint = 1 << 21;
pub(super) const IBV_DEVICE_MEM_WINDOW_TYPE_2A: c_uint = 1 << 23;
pub(super) const IBV_DEVICE_MEM_WINDOW_TYPE_2B: c_uint = 1 << 24;
pub(super) const IBV_MW_TYPE_2: c_int = 2;
pub(super) const IBV_QPT_RC: c_int = 2;
pub(super) const IBV_ACCESS_LOCAL_WRITE: c_int = 1;
pub(super) const IBV_ACCESS_REMOTE_WRITE: c_int = 1 << 1;
pub(super) const IBV_ACCESS_REMOTE_READ: c_int = 1 << 2;
pub(super) const IBV_ACCESS_MW_BIND: c_int = 1 << 4;
pub(super) const IBV_WR_RDMA_WRITE: c_int = 0;
pub(super) const IBV_WR_SEND: c_int = 2;
pub(super) const IBV_WR_RDMA_READ: c_int = 4;
pub(super) const IBV_WR_BIND_MW: c_int = 8;
pub(super) const IBV_WR_SEND_WITH_INV: c_int = 9;
pub(super) const IBV_SEND_SIGNALED: c_uint = 1 << 1;
pub(super) const IBV_SEND_INLINE: c_uint = 1 << 3;
pub(super) const IBV_WC_RECV_RDMA_WITH_IMM: c_int = 129;
pub(super) const IBV_WC_WITH_INV: c_uint = 1 << 3;
pub(super) const IBV_WC_IP_CSUM_OK: c_uint = 1 << 2;
pub(super) const IBV_EVENT_CQ_ERR: c_int = 0;
pub(super) const IBV_EVENT_QP_FATAL: c_int = 1;
pub(super) const IBV_EVENT_QP_REQ_ERR: c_int = 2;
pub(super) const IBV_EVENT_QP_ACCESS_ERR: c_int = 3;
pub(super) const IBV_EVENT_COMM_EST: c_int = 4;
pub(super) const IBV_EVENT_DEVICE_FATAL: c_int = 8;
pub(super) const IBV_EVENT_PORT_ACTIVE: c_int = 9;
pub(super) const IBV_EVENT_PORT_ERR: c_int = 10;
pub(super) const IBV_EVENT_LID_CHANGE: c_int = 11;
pub(super) const IBV_EVENT_PKEY_CHANGE: c_int = 12;
pub(super) const IBV_EVENT_SM_CHANGE: c_int = 13;
pub(super) const IBV_EVENT_CLIENT_REREGISTER: c_int = 17;
pub(super) const IBV_EVENT_GID_CHANGE: c_int = 18;
pub(super) const RDMA_PS_TCP: c_int = 0x0106;

/// The two libraries.
pub(super) struct Libraries {
    pub(super) verbs: libloading::Library,
    pub(super) cm: libloading::Library,
}

/// Declares the functions, and how they are found.
macro_rules! functions {
    ($($lib:ident: $name:ident($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions of the two libraries.
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Functions {
            /// Finds them all.
            ///
            /// # Safety
            ///
            /// The libraries are libibverbs.so.1 and librdmacm.so.1, and stay loaded as long as
            /// a function is used.
            pub(super) unsafe fn find(from: &Libraries) -> Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: the declared types are those of the headers of these libraries,
                    // whose sonames fix the ABI.
                    $($name: unsafe { *from.$lib.get(concat!(stringify!($name), "\0").as_bytes())? },)*
                })
            }
        }
    };
}

functions! {
    verbs: ibv_query_device(*mut ibv_context, *mut ibv_device_attr) -> c_int;
    verbs: ibv_query_port(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
    verbs: ibv_alloc_pd(*mut ibv_context) -> *mut ibv_pd;
    verbs: ibv_dealloc_pd(*mut ibv_pd) -> c_int;
    verbs: ibv_reg_mr(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
    verbs: ibv_dereg_mr(*mut ibv_mr) -> c_int;
    verbs: ibv_create_comp_channel(*mut ibv_context) -> *mut ibv_comp_channel;
    verbs: ibv_destroy_comp_channel(*mut ibv_comp_channel) -> c_int;
    verbs: ibv_create_cq(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int)
        -> *mut ibv_cq;
    verbs: ibv_destroy_cq(*mut ibv_cq) -> c_int;
    verbs: ibv_get_cq_event(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    verbs: ibv_ack_cq_events(*mut ibv_cq, c_uint);
    verbs: ibv_get_async_event(*mut ibv_context, *mut ibv_async_event) -> c_int;
    verbs: ibv_ack_async_event(*mut ibv_async_event);
    cm: rdma_create_event_channel() -> *mut rdma_event_channel;
    cm: rdma_destroy_event_channel(*mut rdma_event_channel);
    cm: rdma_create_id(*mut rdma_event_channel, *mut *mut rdma_cm_id, *mut c_void, c_int) -> c_int;
    cm: rdma_destroy_id(*mut rdma_cm_id) -> c_int;
    cm: rdma_bind_addr(*mut rdma_cm_id, *mut sockaddr) -> c_int;
    cm: rdma_listen(*mut rdma_cm_id, c_int) -> c_int;
    cm: rdma_resolve_addr(*mut rdma_cm_id, *mut sockaddr, *mut sockaddr, c_int) -> c_int;
    cm: rdma_resolve_route(*mut rdma_cm_id, c_int) -> c_int;
    cm: rdma_create_qp(*mut rdma_cm_id, *mut ibv_pd, *mut ibv_qp_init_attr) -> c_int;
    cm: rdma_destroy_qp(*mut rdma_cm_id);
    cm: rdma_connect(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
    cm: rdma_accept(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
    cm: rdma_reject(*mut rdma_cm_id, *const c_void, u8) -> c_int;
    cm: rdma_notify(*mut rdma_cm_id, c_int) -> c_int;
    cm: rdma_disconnect(*mut rdma_cm_id) -> c_int;
    cm: rdma_get_cm_event(*mut rdma_event_channel, *mut *mut rdma_cm_event) -> c_int;
    cm: rdma_ack_cm_event(*mut rdma_cm_event) -> c_int;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;
    use std::mem::{offset_of, size_of};
    use std::process::Command;

    /// Lines of C that hold when the header says the same as this file.
    fn assertions() -> String {
        let mut c = String::from("#include <rdma/rdma_cma.h>\n#include <stddef.h>\n");
        macro_rules! same {
            (size $($name:ident)*) => { $(
                writeln!(c, "_Static_assert(sizeof(struct {0}) == {1}, \"{0}\");",
                    stringify!($name), size_of::<$name>()).unwrap();
            )* };
            ($name:ident $($field:ident = $theirs:literal)*) => { $(
                writeln!(c, "_Static_assert(offsetof(struct {0}, {1}) == {2}, \"{0}.{1}\");",
                    stringify!($name), $theirs, offset_of!($name, $field)).unwrap();
            )* };
            (value $($name:ident)*) => { $(
                writeln!(c, "_Static_assert({0} == {1}, \"{0}\");", stringify!($name), $name)
                    .unwrap();
            )* };
        }
        same!(size ibv_device ibv_context_ops ibv_mr ibv_comp_channel ibv_qp_cap ibv_qp_init_attr);
        same!(size ibv_context ibv_modify_cq_attr);
        same!(ibv_context abi_compat = "abi_compat");
        same!(ibv_modify_cq_attr cq_count = "moderate.cq_count" cq_period = "moderate.cq_period");
        same!(value IBV_CQ_ATTR_MODERATE);
        for (field, offset) in [
            ("modify_cq", offset_of!(verbs_context, modify_cq)),
            ("sz", offset_of!(verbs_context, sz)),
        ] {
            writeln!(
                c,
                "_Static_assert(offsetof(struct verbs_context, context) - \
                 offsetof(struct verbs_context, {field}) == {}, \"{field}\");",
                size_of::<verbs_context>() - offset
            )
            .unwrap();
        }
        same!(size ibv_async_event);
        same!(ibv_async_event element = "element" event_type = "event_type");
        same!(value IBV_EVENT_CQ_ERR IBV_EVENT_QP_FATAL IBV_EVENT_QP_REQ_ERR
            IBV_EVENT_QP_ACCESS_ERR IBV_EVENT_COMM_EST IBV_EVENT_DEVICE_FATAL IBV_EVENT_PORT_ACTIVE
            IBV_EVENT_PORT_ERR IBV_EVENT_LID_CHANGE IBV_EVENT_PKEY_CHANGE IBV_EVENT_SM_CHANGE
            IBV_EVENT_CLIENT_REREGISTER IBV_EVENT_GID_CHANGE);
        same!(size ibv_mw ibv_sge ibv_send_wr ibv_recv_wr ibv_wc ibv_device_attr rdma_conn_param);
        same!(ibv_device node_type = "node_type" transport_type = "transport_type" name = "name"
            dev_name = "dev_name" ibdev_path = "ibdev_path");
        same!(ibv_mw rkey = "rkey" handle = "handle" type_ = "type");
        same!(ibv_context_ops alloc_mw = "alloc_mw" dealloc_mw = "dealloc_mw");
        same!(ibv_context_ops poll_cq = "poll_cq" req_notify_cq = "req_notify_cq"
            post_send = "post_send" post_recv = "post_recv");
        same!(ibv_context device = "device" ops = "ops" cmd_fd = "cmd_fd" async_fd = "async_fd"
            num_comp_vectors = "num_comp_vectors");
        same!(ibv_mr lkey = "lkey" rkey = "rkey" length = "length");
        same!(ibv_comp_channel fd = "fd");
        same!(ibv_cq context = "context" channel = "channel" cq_context = "cq_context" cqe = "cqe");
        same!(ibv_qp context = "context" qp_context = "qp_context" pd = "pd" qp_num = "qp_num");
        same!(ibv_qp_init_attr send_cq = "send_cq" cap = "cap" qp_type = "qp_type"
            sq_sig_all = "sq_sig_all");
        same!(ibv_send_wr next = "next" sg_list = "sg_list" num_sge = "num_sge" opcode = "opcode"
            send_flags = "send_flags" invalidate_rkey = "invalidate_rkey" wr = "wr"
            remote_srqn = "qp_type" bind_mw = "bind_mw");
        for (field, offset) in [
            ("rkey", offset_of!(wr_bind_mw, rkey)),
            ("bind_info.mr", offset_of!(wr_bind_mw, mr)),
            ("bind_info.addr", offset_of!(wr_bind_mw, addr)),
            ("bind_info.length", offset_of!(wr_bind_mw, length)),
            (
                "bind_info.mw_access_flags",
                offset_of!(wr_bind_mw, mw_access_flags),
            ),
        ] {
            writeln!(
                c,
                "_Static_assert(offsetof(struct ibv_send_wr, bind_mw.{field}) == {}, \"{field}\");",
                offset_of!(ibv_send_wr, bind_mw) + offset
            )
            .unwrap();
        }
        writeln!(
            c,
            "_Static_assert(offsetof(struct ibv_send_wr, wr.rdma.rkey) == {}, \"rkey\");",
            offset_of!(ibv_send_wr, wr) + offset_of!(wr_rdma, rkey)
        )
        .unwrap();
        same!(ibv_recv_wr next = "next" sg_list = "sg_list" num_sge = "num_sge");
        same!(ibv_wc status = "status" opcode = "opcode" byte_len = "byte_len"
            invalidated_rkey = "invalidated_rkey" qp_num = "qp_num" wc_flags = "wc_flags");
        same!(ibv_device_attr max_qp_wr = "max_qp_wr" device_cap_flags = "device_cap_flags"
            max_sge = "max_sge" max_sge_rd = "max_sge_rd" max_cqe = "max_cqe"
            max_qp_rd_atom = "max_qp_rd_atom" max_qp_init_rd_atom = "max_qp_init_rd_atom");
        same!(ibv_port_attr state = "state" active_width = "active_width"
            active_speed = "active_speed" link_layer = "link_layer");
        writeln!(
            c,
            "_Static_assert(sizeof(struct ibv_port_attr) <= {}, \"ibv_port_attr\");",
            size_of::<ibv_port_attr>()
        )
        .unwrap();
        same!(rdma_event_channel fd = "fd");
        same!(rdma_cm_id verbs = "verbs" channel = "channel" context = "context" qp = "qp"
            src_addr = "route.addr.src_addr" dst_addr = "route.addr.dst_addr"
            ps = "ps" port_num = "port_num");
        same!(rdma_conn_param private_data_len = "private_data_len"
            responder_resources = "responder_resources" initiator_depth = "initiator_depth"
            retry_count = "retry_count" rnr_retry_count = "rnr_retry_count" qp_num = "qp_num");
        same!(rdma_cm_event id = "id" listen_id = "listen_id" event = "event" status = "status"
            conn = "param.conn");
        same!(value IBV_DEVICE_MEM_WINDOW_TYPE_2A IBV_DEVICE_MEM_WINDOW_TYPE_2B IBV_MW_TYPE_2
            IBV_ACCESS_MW_BIND IBV_WR_BIND_MW);
        same!(value IBV_TRANSPORT_IB IBV_TRANSPORT_IWARP IBV_DEVICE_MEM_MGT_EXTENSIONS IBV_QPT_RC
            IBV_ACCESS_LOCAL_WRITE IBV_ACCESS_REMOTE_WRITE IBV_ACCESS_REMOTE_READ
            IBV_WR_RDMA_WRITE IBV_WR_SEND IBV_WR_RDMA_READ IBV_WR_SEND_WITH_INV
            IBV_SEND_SIGNALED IBV_SEND_INLINE IBV_WC_RECV_RDMA_WITH_IMM IBV_WC_WITH_INV
            IBV_WC_IP_CSUM_OK RDMA_PS_TCP);
        c
    }

    #[test]
    fn headers_agree() {
        let header = std::path::Path::new("/usr/include/rdma/rdma_cma.h");
        if !header.exists() {
            println!("SKIP: headers_agree: {} (librdmacm-dev)", header.display());
            return;
        }
        let source = std::env::temp_dir().join(format!("smbdirect-abi-{}.c", std::process::id()));
        std::fs::write(&source, assertions()).unwrap();
        let output = Command::new("cc")
            .args(["-std=gnu11", "-fsyntax-only", "-Wall"])
            .arg(&source)
            .output()
            .expect("a C compiler");
        std::fs::remove_file(&source).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
}
