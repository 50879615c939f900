-- The end of the installation: say what works without the background ticker, and have it started where it is loaded.
-- CREATE EXTENSION hides notices while it runs, and puts the setting back at its end.

do $finish$
begin
    if not exists (
        select from regexp_split_to_table(current_setting('shared_preload_libraries'), '\s*,\s*') library
         where trim(both '"' from regexp_replace(library, '^.*/', '')) = 'pgcascade')
    then
        perform set_config('client_min_messages', 'notice', true);
        raise notice using
            message = 'pgcascade is not in shared_preload_libraries, so no background worker ticks and maintains the queues of this database',
            hint = 'Everything else works, and pgq.ticker() can be called from outside. To have it done by the server, '
                   'add pgcascade to shared_preload_libraries and restart it.';
    end if;
end
$finish$;

select pgcascade.wake_launcher();
