//! Periodic progress reports while a module is compiled.

use std::future::Future;
use std::time::Duration;

use machinery_env::Env;

/// A callback that receives the time since the compilation began.
pub type CompileProgress<'a> = &'a (dyn Fn(Duration) + Send + Sync);

/// Seconds between two reports. After the last one, only the end of the compilation is reported. Most modules are
/// compiled before the first.
const REPORT_INTERVALS_S: [u64; 9] = [3, 7, 10, 10, 20, 40, 80, 160, 320];

/// Runs `work`, which compiles a module, and reports the elapsed time meanwhile.
pub async fn report_compilation<T>(env: &Env, on_progress: CompileProgress<'_>, work: impl Future<Output = T>) -> T {
    let began = env.elapsed();
    let mut work = std::pin::pin!(work);
    for wait in REPORT_INTERVALS_S {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = env.sleep(Duration::from_secs(wait)) => on_progress(env.elapsed().saturating_sub(began)),
        }
    }
    work.await
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use machinery_env::TokioClock;

    use super::*;

    async fn reports(seconds: u64) -> Vec<u64> {
        let (env, times) = (TokioClock::env(1).0, Mutex::new(Vec::new()));
        let on_progress = |so_far: Duration| times.lock().unwrap().push(so_far.as_secs());
        let work = async {
            env.sleep(Duration::from_secs(seconds)).await;
            7
        };
        assert_eq!(report_compilation(&env, &on_progress, work).await, 7);
        times.into_inner().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn reports_become_rarer() {
        assert_eq!(reports(2).await, Vec::<u64>::new());
        assert_eq!(reports(35).await, [3, 10, 20, 30]);
        assert_eq!(reports(100_000).await, [3, 10, 20, 30, 50, 90, 170, 330, 650]);
    }
}
