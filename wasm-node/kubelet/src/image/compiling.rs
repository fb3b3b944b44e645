//! Who waits for a module to be compiled hears now and then that it still is.

use std::future::Future;
use std::time::Duration;

use machinery_env::Env;

/// Hears for how long a module has been compiled so far.
pub(crate) type Told<'a> = &'a (dyn Fn(Duration) + Send + Sync);

/// Seconds from one time that it is told to the next; then no more, as what takes longer is told by its end. Most modules are done before
/// the first.
const WAITS_S: [u64; 8] = [10, 10, 10, 20, 40, 80, 160, 320];

/// Does `work`, in which a module is compiled, and tells how long it takes.
pub(crate) async fn told<T>(env: &Env, tell: Told<'_>, work: impl Future<Output = T>) -> T {
    let began = env.elapsed();
    let mut work = std::pin::pin!(work);
    for wait in WAITS_S {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(Duration::from_secs(wait)) => tell(env.elapsed().saturating_sub(began)),
        }
    }
    work.await
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use machinery_env::TokioClock;
    use tokio::time::sleep;

    use super::*;

    async fn heard(seconds: u64) -> Vec<u64> {
        let (env, heard) = (TokioClock::env(1).0, Mutex::new(Vec::new()));
        let tell = |so_far: Duration| heard.lock().unwrap().push(so_far.as_secs());
        let work = async {
            sleep(Duration::from_secs(seconds)).await;
            7
        };
        assert_eq!(told(&env, &tell, work).await, 7);
        heard.into_inner().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_told_each_ten_seconds_and_then_less_and_less() {
        assert_eq!(heard(9).await, Vec::<u64>::new());
        assert_eq!(heard(35).await, [10, 20, 30]);
        assert_eq!(heard(100_000).await, [10, 20, 30, 50, 90, 170, 330, 650]);
    }
}
