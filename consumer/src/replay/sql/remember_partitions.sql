-- $1: consumer, $2: queue, $3, $4: schema and name of the table, $5 to $8: of each partition schema, name, condition and trigger,
-- $9: the provider
insert into pgcascade_replay.partition
       (consumer, queue, provider_schema, provider_table, partition_schema, partition_table, partition_rows, clone, provider)
select $1, $2, $3, $4, p.*, $9
  from rows from (pg_catalog.unnest($5::text[]), pg_catalog.unnest($6::text[]), pg_catalog.unnest($7::text[]),
                  pg_catalog.unnest($8::oid[])) p
    on conflict (consumer, queue, provider_schema, provider_table, partition_schema, partition_table)
    do update set partition_rows = excluded.partition_rows, clone = excluded.clone, provider = excluded.provider
 where (partition.partition_rows, partition.clone, partition.provider)
       is distinct from (excluded.partition_rows, excluded.clone, excluded.provider)
