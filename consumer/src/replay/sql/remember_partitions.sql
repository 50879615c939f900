-- $1: consumer, $2: queue, $3, $4: schema and name of the table, $5 to $8: of each partition schema, name, condition and trigger
insert into pgcascade_replay.partition
       (consumer, queue, provider_schema, provider_table, partition_schema, partition_table, partition_rows, clone)
select $1, $2, $3, $4, p.*
  from rows from (pg_catalog.unnest($5::text[]), pg_catalog.unnest($6::text[]), pg_catalog.unnest($7::text[]),
                  pg_catalog.unnest($8::oid[])) p
    on conflict (consumer, queue, provider_schema, provider_table, partition_schema, partition_table)
    do update set partition_rows = excluded.partition_rows, clone = excluded.clone
 where (partition.partition_rows, partition.clone) is distinct from (excluded.partition_rows, excluded.clone)
