{#
The tables that landing writes, and nothing else. Plain Jinja on purpose: the loader renders this
file without dbt when a table is missing, and dbt runs the same statements at the start of a run.

raw_tables_ddl(database, cluster=none) gives the statements, separated by `;;`. All are idempotent.

- raw_traces:  one row a record that is a trace, its request and response byte for byte.
- raw_rejects: one row a line that is not such a record, with the reason and where it stood.
- raw_batches: the ledger, one row a batch, written last.
- raw_lost_batches: batches whose rows were lost later (the operation mend), and where they were cut:
               a file that is landed again is cut there, so that its records are the same ones.

`position` numbers the non-blank lines of a batch from 0, through rows and rejects alike; a line that
is replayed keeps it, and the replay's id begins with that of its first batch and a hyphen. A batch
is inserted with one `landed_at`, so that it falls into one partition and is one part.

Each format has a staging model that reads its own records: by_format keeps it from reading the
payloads of all others.

A part is on the disk before its insert answers: what the ledger has is removed from a spool, and
then this is the only copy.
#}
{% macro raw_tables_ddl(database, cluster=none) %}
{%- set on_cluster = (" on cluster `" ~ cluster ~ "`") if cluster else "" -%}
{%- set durable = "fsync_after_insert = 1, fsync_part_directory = 1" -%}
{%- set engine = "ReplicatedMergeTree" if cluster else "MergeTree" -%}
create database if not exists `{{ database }}`{{ on_cluster }}
;;
create table if not exists `{{ database }}`.raw_traces{{ on_cluster }}
(
    batch_id String comment 'The batch it came with: a hash of source, offset and bytes',
    position UInt32 comment 'Its place among the non-blank lines of the batch, from 0',
    format LowCardinality(String) comment 'The record format, as named in loader/formats.yml',
    request_json String comment 'The request, verbatim; empty when the key is absent' codec(ZSTD(1)),
    response_json String comment 'The response, verbatim; empty when the key is absent' codec(ZSTD(1)),
    envelope_json String comment 'The other keys of the record, values verbatim' codec(ZSTD(1)),
    repairs Array(LowCardinality(String)) comment 'What was changed to accept it; mostly empty',
    landed_at DateTime64(3, 'UTC') comment 'When its batch was landed',
    index by_format format type set(2) granularity 1
)
engine = {{ engine }}
partition by toYYYYMM(landed_at)
order by (batch_id, position)
settings min_parts_to_merge_at_once = 20, {{ durable }}
;;
create table if not exists `{{ database }}`.raw_rejects{{ on_cluster }}
(
    batch_id String comment 'The batch it came with',
    position UInt32 comment 'Its place among the non-blank lines of the batch, from 0',
    source String comment 'The file (absolute path) or stream it came from',
    line UInt64 comment 'Line number in the source, from 1',
    byte_offset UInt64 comment 'Where the line begins in the (decompressed) source, in bytes',
    reason LowCardinality(String) comment 'Why it is no trace: a short fixed word',
    detail String comment 'The reason in words, without payload',
    raw String comment 'The line, verbatim, without its newline' codec(ZSTD(1)),
    landed_at DateTime64(3, 'UTC') comment 'When its batch was landed'
)
engine = {{ engine }}
partition by toYYYYMM(landed_at)
order by (batch_id, position)
settings {{ durable }}
;;
create table if not exists `{{ database }}`.raw_batches{{ on_cluster }}
(
    batch_id String comment 'Hash of source, start offset and bytes',
    source String comment 'The file (absolute path) or stream it was cut from',
    start_offset UInt64 comment 'First byte of the batch in the (decompressed) source',
    end_offset UInt64 comment 'The byte after its last',
    first_line UInt64 comment 'Line number of its first byte, from 1',
    lines UInt32 comment 'Non-blank lines: rows + rejects',
    rows UInt32 comment 'Records in raw_traces',
    rejects UInt32 comment 'Lines in raw_rejects',
    bytes UInt64 comment 'Size in the (decompressed) source',
    loader_version LowCardinality(String) comment 'The version of the loader',
    landed_at DateTime64(3, 'UTC') comment 'When it was complete',
    continues Array(String) comment 'Batches with the beginning of its first line, which had no end then'
)
engine = {{ engine }}
order by (source, start_offset, batch_id)
settings {{ durable }}
;;
create table if not exists `{{ database }}`.raw_lost_batches{{ on_cluster }}
(
    batch_id String comment 'The batch, which is in raw_batches once it is landed again',
    source String comment 'The file (absolute path) or stream it was cut from',
    start_offset UInt64 comment 'First byte of the batch in the (decompressed) source',
    end_offset UInt64 comment 'The byte after its last',
    first_line UInt64 comment 'Line number of its first byte, from 1',
    rows UInt32 comment 'Records it had in raw_traces',
    rejects UInt32 comment 'Lines it had in raw_rejects',
    lost_at DateTime64(3, 'UTC') comment 'When it was taken out of raw_batches',
    continues Array(String) comment 'Batches with the beginning of its first line, which had no end then'
)
engine = {{ engine }}
order by (source, start_offset, batch_id)
settings {{ durable }}
{%- for table in ["raw_batches", "raw_lost_batches"] %}
;;
alter table `{{ database }}`.{{ table }}{{ on_cluster }} add column if not exists continues Array(String)
    comment 'Batches with the beginning of its first line, which had no end then'
{%- endfor %}
{% endmacro %}
