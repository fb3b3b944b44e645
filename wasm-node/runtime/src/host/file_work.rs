//! The turns of a container at the disk, for stores of host interfaces.

use async_trait::async_trait;
use runtime_api::disk::{DiskBusy, FileWork};

use super::disk::Disk;

#[async_trait]
impl FileWork for Disk {
    async fn run(&self, work: &mut (dyn FnMut() + Send)) -> Result<(), DiskBusy> {
        self.work(async { work() }).await
    }

    async fn flush(&self, work: &mut (dyn FnMut() + Send)) -> Result<(), DiskBusy> {
        self.sync(async { work() }).await
    }
}
