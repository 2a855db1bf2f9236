//! The migrations, embedded: forward only, the same versions and names for both databases.
//!
//! Refuses to run them; that is the databases' own affair, because each locks in its own way.

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// Version, name and text of every migration of one database.
macro_rules! migrations {
    ($folder:literal) => {
        &[
            (1, "initial", include_str!(concat!("../../migrations/", $folder, "/0001_initial.sql"))),
            (2, "bursts", include_str!(concat!("../../migrations/", $folder, "/0002_bursts.sql"))),
            (3, "brain", include_str!(concat!("../../migrations/", $folder, "/0003_brain.sql"))),
            (4, "token_budgets", include_str!(concat!("../../migrations/", $folder, "/0004_token_budgets.sql"))),
            (5, "operator_actions", include_str!(concat!("../../migrations/", $folder, "/0005_operator_actions.sql"))),
            (6, "chats", include_str!(concat!("../../migrations/", $folder, "/0006_chats.sql"))),
            (7, "http_channel", include_str!(concat!("../../migrations/", $folder, "/0007_http_channel.sql"))),
            (
                9,
                "uncertain_deliveries",
                include_str!(concat!("../../migrations/", $folder, "/0009_uncertain_deliveries.sql")),
            ),
            (10, "unknown_ends", include_str!(concat!("../../migrations/", $folder, "/0010_unknown_ends.sql"))),
            (11, "console", include_str!(concat!("../../migrations/", $folder, "/0011_console.sql"))),
            (14, "death_epochs", include_str!(concat!("../../migrations/", $folder, "/0014_death_epochs.sql"))),
        ]
    };
}

pub(super) const POSTGRES: &[(i64, &str, &str)] = migrations!("postgres");
pub(super) const SQLITE: &[(i64, &str, &str)] = migrations!("sqlite");

pub(super) fn migrator(migrations: &[(i64, &'static str, &'static str)]) -> Migrator {
    let migration = |&(version, name, sql): &(i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(migrations.iter().map(migration).collect());
    // While a deployment is upgraded, processes of the version before still start, also after a crash: migrations only add.
    migrator.set_ignore_missing(true);
    migrator
}

/// Whether `applied` (the versions that ran to the end) holds every migration.
pub(super) fn is_complete(migrations: &[(i64, &'static str, &'static str)], applied: &[i64]) -> bool {
    migrations.iter().all(|(version, ..)| applied.contains(version))
}
