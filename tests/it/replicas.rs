//! Replicas and their writer as processes: what clients of them see, also when the writer dies. A folder
//! stands for the bucket here; `ceph_replicas.rs` does the same on Ceph.
