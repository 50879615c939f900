-- The queue on the provider: its number and event table, and who that provider is.
-- $1: queue
select q.queue_id, q.queue_data_pfx,
       s.system_identifier::text || ':' || d.oid::text || ':' || q.queue_id::text as identity
  from pgq.queue q, pg_catalog.pg_control_system() s, pg_catalog.pg_database d
 where q.queue_name = $1 and d.datname = pg_catalog.current_database()
