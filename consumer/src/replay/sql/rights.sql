-- What the role may do with the queue's functions on the provider. Run only where the extension is.
-- $1: the queue
select (select q.queue_id from pgq.queue q where q.queue_name = $1) as queue_id,
       coalesce((select q.queue_external_ticker from pgq.queue q where q.queue_name = $1), false) as external,
       pg_catalog.has_function_privilege('pgq.create_queue(text)', 'execute') as may_create,
       pg_catalog.has_function_privilege('pgq.register_consumer(text,text)', 'execute') as may_read,
       pg_catalog.has_function_privilege('pgq.force_tick(text)', 'execute')
         and pg_catalog.has_function_privilege('pgq.ticker(text)', 'execute') as may_tick,
       pg_catalog.has_function_privilege('pgq.logutriga()', 'execute') as may_capture
