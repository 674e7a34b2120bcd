#!/bin/sh
# query: a red box, or so
# times are known to 0.366 s
set -e
# two lines
ffmpeg -nostdin -v error -y -protocol_whitelist file -ss 70.500430 -i 'file:/media/a "b" & c'\''s 100%.mp4' -t 24.687996 -c:v libx264 -preset veryfast -crf 18 -vf 'pad=ceil(iw/2)*2:ceil(ih/2)*2' -sn -dn -c:a aac -b:a 192k -map_metadata -1 -map_chapters -1 -movflags +faststart -abort_on empty_output 'file:a "b" & c'\''s 100%-01.mp4'
# a red box, or so
ffmpeg -nostdin -v error -y -protocol_whitelist file -ss 599.996063 -i 'file:/media/a "b" & c'\''s 100%.mp4' -t 12.308963 -c:v libx264 -preset veryfast -crf 18 -vf 'pad=ceil(iw/2)*2:ceil(ih/2)*2' -sn -dn -c:a aac -b:a 192k -map_metadata -1 -map_chapters -1 -movflags +faststart -abort_on empty_output 'file:a "b" & c'\''s 100%-02.mp4'
# x = 1; #2 <b> \ | "q", a --> b, é
ffmpeg -nostdin -v error -y -protocol_whitelist file -ss 3601.094163 -i 'file:/media/a "b" & c'\''s 100%.mp4' -t 18.915563 -c:v libx264 -preset veryfast -crf 18 -vf 'pad=ceil(iw/2)*2:ceil(ih/2)*2' -sn -dn -c:a aac -b:a 192k -map_metadata -1 -map_chapters -1 -movflags +faststart -abort_on empty_output 'file:a "b" & c'\''s 100%-03.mp4'
