//! The examples that `--help` shows. A test parses every one.

pub(super) const SERVE: &str = "\
Examples:
  pressmark serve                                                        the default folder, on this machine only
  pressmark serve --archive /var/lib/pressmark --listen 0.0.0.0:50051 --tls-cert cert.pem --tls-key key.pem --tokens tokens.toml
  pressmark serve --backup-to /mnt/backup --scrub-interval 7d
  pressmark serve --http-listen 127.0.0.1:50080                          with a page in a browser
  pressmark serve --grpc-web on --cors-origin https://desk.example       callable from the pages of a site
  pressmark serve --otlp-endpoint http://127.0.0.1:4317 --otlp-ratio 0.1";

pub(super) const PUT: &str = "\
Examples:
  pressmark put article.md
  pressmark put - < article.md    standard input";

pub(super) const GET: &str = "\
Examples:
  pressmark get 17f9e5be                  a prefix of the id
  pressmark get https://news.example/1    the latest revision at a URL
  pressmark get 17f9e5be --json";

pub(super) const LIST: &str = "\
Examples:
  pressmark list --source Reuters --after 2020-01-01 --limit 10
  pressmark list --order arrival-desc                              what came last";

pub(super) const SCAN: &str = "\
Examples:
  pressmark scan --json > all.jsonl                      whole articles, which an import reads again
  pressmark scan --source Reuters --before 2020-01-01";

pub(super) const COUNT: &str = "\
Examples:
  pressmark count --source Reuters --after 2020-01-01";

pub(super) const MISSING: &str = "\
Examples:
  pressmark missing ids.txt
  b3sum -- *.md | cut -c 1-64 | pressmark missing";

pub(super) const SOURCES: &str = "\
Examples:
  pressmark sources
  pressmark sources --json";

pub(super) const REVISIONS: &str = "\
Examples:
  pressmark revisions https://news.example/1
  pressmark revisions --diff https://news.example/1         the last change
  pressmark revisions --diff=1..3 https://news.example/1";

pub(super) const COPIES: &str = "\
Examples:
  pressmark copies 17f9e5bee2b2f902c8472f7ae6befa0d75ee657a74a3c8b47dd6939b3b9c468d
  pressmark copies --similarity 0.8 17f9e5bee2b2f902c8472f7ae6befa0d75ee657a74a3c8b47dd6939b3b9c468d";

pub(super) const WATCH: &str = "\
Examples:
  pressmark watch --json      from now on
  pressmark watch --from 1    everything, then what comes";

pub(super) const TIMELINE: &str = "\
Examples:
  pressmark timeline --bucket month --after 2020-01-01
  pressmark timeline --by-source --json";

pub(super) const SEARCH: &str = "\
Examples:
  pressmark search rate decision
  pressmark search '\"interest rates\" -cut title:ECB' --after 2020-01-01";

pub(super) const REINDEX: &str = "\
Examples:
  pressmark reindex --archive ./pressmark-data";

pub(super) const DELETE: &str = "\
Examples:
  pressmark delete --reason \"court order 7\" 17f9e5bee2b2f902c8472f7ae6befa0d75ee657a74a3c8b47dd6939b3b9c468d";

pub(super) const VERIFY: &str = "\
Examples:
  pressmark verify
  pressmark verify --archive ./pressmark-data --repair";

pub(super) const BACKUP: &str = "\
Examples:
  pressmark backup monday.pmb
  pressmark backup --after monday.pmb tuesday.pmb    only what came since
  pressmark backup - > all.pmb";

pub(super) const RESTORE: &str = "\
Examples:
  pressmark restore --archive ./new monday.pmb tuesday.pmb";

pub(super) const MIGRATE: &str = "\
Examples:
  pressmark migrate http://127.0.0.1:50051 s3://bucket/news             copies, then follows; Ctrl-C ends it
  pressmark migrate --switch http://127.0.0.1:50051 s3://bucket/news    the same, and then switches over
  pressmark migrate ./pressmark-data s3://bucket/news                   when no server has it open
  pressmark migrate s3://bucket/news ./pressmark-data                   and back
  pressmark migrate --release ./pressmark-data                          it was not moved after all";

pub(super) const HEAL: &str = "\
Examples:
  pressmark heal monday.pmb";

pub(super) const STATS: &str = "\
Examples:
  pressmark stats
  pressmark stats --json";

pub(super) const COMPLETIONS: &str = "\
Examples:
  pressmark completions bash > ~/.local/share/bash-completion/completions/pressmark
  pressmark completions zsh > ~/.zfunc/_pressmark
  pressmark completions fish > ~/.config/fish/completions/pressmark.fish";

pub(super) const MAN: &str = "\
Examples:
  pressmark man | man -l -
  pressmark man --dir ~/.local/share/man/man1    the pages of all commands";

pub(super) const EXPORT: &str = "\
Examples:
  pressmark export articles/                                              a tree of Markdown files, a folder per day
  pressmark export all.jsonl.zst                                          one file, as its name says
  pressmark export --source Reuters --after 2020-01-01 reuters.parquet
  pressmark export --format csv - | head                                  standard output
  pressmark export --after 2026-01-01 news.rss                            a feed, for readers";

pub(super) const IMPORT: &str = "\
Examples:
  pressmark import articles/                                                   a tree of files, each as its name says
  pressmark import 2019.jsonl.gz 'feeds/**/*.xml'                              compressed files, and patterns
  pressmark import --format jsonl - < dump.jsonl                               standard input
  pressmark import --dry-run --profile newsapi a.json                          what would be stored
  pressmark import --map title=kop,body=tekst --rejects refused.jsonl a.csv";

pub(super) const TOKEN: &str = "\
Examples:
  pressmark token add importer --role writer > importer.token
  pressmark token add desk --role reader --certificate 'O=Gazette, CN=desk'
  pressmark token list --tokens /etc/pressmark/tokens.toml
  pressmark token revoke importer";

pub(super) const CONFIG: &str = "\
Examples:
  pressmark config                                               what `serve` would do
  pressmark config --config /etc/pressmark/pressmark.toml --streams-max 100";
